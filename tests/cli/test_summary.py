"""What a summary keeps of frames that were read together."""

from __future__ import annotations

import numpy as np
import pytest

from stream.export.contact_sheet import ContactSheet
from stream.frames import Event, Frame
from videollm.cli.summary import Recorder


@pytest.mark.parametrize(("time", "shown"), [(0.0, 0), (1.0, 2), (1.2, 2), (9.0, 5)])
def test_the_sheet_shows_the_frame_of_an_event_though_later_ones_are_seen(time: float, shown: int) -> None:
    stream = [Frame(index / 2, np.full((30, 40, 3), 40 * index, np.uint8)) for index in range(6)]
    recorder = Recorder()
    for frame in stream:
        recorder.seen(frame)
    recorder.said(Event(time, "narration", "A cup is in view."))
    expected = ContactSheet()
    expected.add(stream[shown], "A cup is in view.")
    assert recorder.contact_sheet().tobytes() == expected.image().tobytes()
    assert recorder.time == 2.5
