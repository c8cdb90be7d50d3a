"""`python -m videollm.cli`."""

from videollm.cli import main

main()
