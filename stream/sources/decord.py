"""Files through decord: random access, so that only the sampled frames are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stream.frames import Frame
from stream.sources.base import Source, SourceError
from stream.sources.damage import cut_short, describe
from stream.sources.opening import CHECK_MEDIA, declared_duration, open_container, pick_video, timeline_of
from stream.sources.sampling import Sampler
from stream.sources.square import fit_size, resize

OTHER_READER = "leave the reader at pyav"


class DecordSource(Source):
    """A media file. Raises SourceError when decord is not installed or cannot read the file."""

    def __init__(self, path: Path, fps: float, max_side: int | None) -> None:
        super().__init__()
        try:
            import decord
        except ImportError as error:
            raise SourceError("decord is not installed; run: pip install decord") from error
        self.name = path.name
        self._path = path
        self._fps = fps
        self._max_side = max_side
        # PyAV looks at the file first: it tells apart what can be wrong with it, and decord does not.
        with open_container(str(path)) as container:
            stream = pick_video(container, self.name)
            self.duration = declared_duration(container, stream)
            self._format = container.format.name
            self._timeline = timeline_of(container, stream)
            # Where only the whole file states a duration, sound may go on after the last picture.
            self._declared = self.duration if stream.duration or len(container.streams) == 1 else None
        decord.logging.set_level(decord.logging.QUIET)
        self._errors = (decord.DECORDError, RuntimeError)
        try:
            self._reader = decord.VideoReader(str(path))
        except self._errors as error:
            raise SourceError(f"decord cannot read {self.name}; {OTHER_READER}") from error

    def _frames(self) -> Iterator[Frame]:
        if not len(self._reader):
            raise SourceError(f"{self.name} has no picture that can be decoded; {CHECK_MEDIA}")
        spans = self._reader.get_frame_timestamp(range(len(self._reader)))  # [frames, 2]: start, end in s
        times = [self._timeline.place(float(start)) for start in spans[:, 0]]
        sampler = Sampler(self._fps)
        sample = [index for index, time in enumerate(times) if sampler.takes(time)]
        for index in sample:
            try:
                pixels = self._reader[index].asnumpy()  # [height, width, 3]
            except self._errors:
                self.problem = describe(True, times[index], None)
                return
            height, width, channels = pixels.shape
            if channels != 3:  # noise: what decord makes of a clip with a quarter turn in its metadata
                raise SourceError(f"decord shows {self.name} wrongly; {OTHER_READER}")
            yield Frame(times[index], resize(pixels, *fit_size(width, height, self._max_side)))
        cut = cut_short(self._path, self._format, self._declared, float(spans[-1, 1]))
        self.problem = describe(cut, times[-1], None)

    def _release(self) -> None:
        """decord frees the file with the reader itself."""
