"""ROS 2 image messages as picture files; knows nothing of ROS but the fields of its messages."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

# Encoding -> channels, and which of them are red, green and blue.
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
    "8UC3": (3, (2, 1, 0)),
}


def to_jpeg(message: Any, quality: int = 85) -> bytes:
    """A JPEG of a `sensor_msgs/Image`. Raises ValueError for an encoding that is not of 8 bits a colour."""
    if message.encoding not in _ENCODINGS:
        known = ", ".join(_ENCODINGS)
        raise ValueError(f"encoding {message.encoding} is not known here, only {known}; republish the topic")
    channels, colours = _ENCODINGS[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., colours])).save(target, "JPEG", quality=quality)
    return target.getvalue()


def seconds(stamp: Any) -> float:
    """A `builtin_interfaces/Time` in seconds."""
    return float(stamp.sec + stamp.nanosec * 1e-9)
