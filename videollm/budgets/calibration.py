"""What the layers of a model need, as `videollm calibrate` measured and wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from videollm.bases import cache_folder
from videollm.layer_budget import fingerprint

if TYPE_CHECKING:
    from videollm.depth_lm import DepthLM

FILE = "calibration.json"


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Entries that each layer needs on average over `measurements` (`videollm.layer_needs`)."""

    model: str
    fingerprint: str
    sources: list[str]  # clips or texts
    window: int  # newest queries that were looked at
    tokens: int  # that were read in all
    measurements: int
    date: str
    attention: list[float]  # LMBA of each layer
    output: list[float]  # LMBO of each layer

    def check(self, model: DepthLM) -> None:
        """ValueError where it is of another model."""
        layers = len(model.model.layers)
        if self.fingerprint != fingerprint(model) or len(self.attention) != layers:
            raise ValueError(
                f"the calibration is of another model than this one ({self.model}, {self.date}); make it "
                f"anew with videollm calibrate, or remove {FILE}"
            )


def calibration_file(name: str) -> Path:
    """Where the calibration of a model lies: in its folder, and in the user's cache for one that has none."""
    if Path(name).is_dir():
        return Path(name) / FILE
    return cache_folder() / "calibrations" / name.replace("/", "--") / FILE


def read_calibration(path: Path) -> Calibration | None:
    """The calibration of a file, None where there is none. ValueError for a damaged one."""
    try:
        calibration = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no calibration ({error}); remove it, or calibrate anew") from error
    needs = [*calibration.attention, *calibration.output]
    if len(calibration.attention) != len(calibration.output) or not needs or min(needs) <= 0:
        raise ValueError(f"{path} is no calibration (needs must be above 0); remove it, or calibrate anew")
    return calibration
