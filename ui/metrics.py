"""Figures of the whole server, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0)
STEP_BUCKETS = tuple(round(0.001 * 2 ** (power / 3), 6) for power in range(37))  # to 4.1 s


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.frames = Counter(
            "videollm_frames", "Frames done with, by outcome.", ["outcome"], registry=self.registry
        )
        self.events = Counter("videollm_events", "What was said, by kind.", ["kind"], registry=self.registry)
        self.errors = Counter(
            "videollm_errors", "What was refused, by code.", ["code"], registry=self.registry
        )
        self.latency = Histogram(
            "videollm_frame_seconds",
            "From a frame's coming in to its being read.",
            buckets=BUCKETS,
            registry=self.registry,
        )

        self.steps = Histogram(
            "videollm_step_seconds",
            "A step of the engine: one chunk of every stream that has something to read.",
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when it is wanted."""
        Gauge(name, documentation, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
