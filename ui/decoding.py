"""Picture files from the network into pixels; what is too large is refused before it is decoded."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from stream.sources.images import to_pixels
from ui.protocol import MAX_PIXELS, EncodedFrame, ErrorCode, FrameFormat, ProtocolError

# Pillow warns of pictures that are refused here.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def decode(frame: EncodedFrame, max_side: int) -> np.ndarray:
    """uint8 [height, width, 3], upright, neither side above `max_side`. Raises ProtocolError."""
    try:
        return decode_picture(frame.data, (frame.format,), max_side)
    except ProtocolError as error:
        raise ProtocolError(error.code, str(error), frame.sequence) from error


def decode_picture(data: bytes, formats: tuple[FrameFormat, ...], max_side: int) -> np.ndarray:
    """A picture file in one of the formats, as `decode` gives it. Raises ProtocolError."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:  # reads the header alone
            width, height = image.size
            if width * height > MAX_PIXELS:
                reason = f"a picture of {width} x {height} pixels; {MAX_PIXELS} are the most"
                raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, reason)
            return to_pixels(image, max_side)
    except Image.DecompressionBombError as error:  # far above
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"at most {MAX_PIXELS} pixels are taken") from error
    except ProtocolError:
        raise
    except Exception as error:  # what Pillow raises on damaged files has no common class
        reason = f"no {' or '.join(formats)} that can be decoded"
        raise ProtocolError(ErrorCode.FRAME_UNDECODABLE, reason) from error
