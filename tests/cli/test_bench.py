"""What `videollm bench` says where it can't measure."""

from __future__ import annotations

import sys

import pytest

from videollm.cli.bench import decoder
from videollm.cli.errors import CommandError


def test_without_llama_cpp_the_decoder_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(CommandError, match="pip install llama-cpp-python"):
        decoder()
