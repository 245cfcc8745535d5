"""How to sample: the settings of one call that suit a model, their ranges, and the file that keeps them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from l2p_arch.arguments import LARGEST_SIDE
from l2p_arch.errors import ArchError
from l2p_arch.files.directories import read_json

SAMPLING_FILE = "sampling.json"
"""Beside model_index.json: the fields of `Sampling` that suit the model. l2p-transfer writes it."""
LARGEST_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. The defaults are those of the released 1K model, for models that bring none of their
    own."""

    height: int = 1024  # px
    width: int = 1024  # px
    num_inference_steps: int = 30
    guidance_scale: float = 2.0  # 1 or less: off
    noise_shift: float | None = None  # None: the model's scheduler decides
    distilled_guidance_scale: float | None = None  # that FLUX [dev] embeds; None: its family's default

    @property
    def options(self) -> dict[str, Any]:
        """Of the pipeline's call; what is None is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self, names: Mapping[str, str] | None = None) -> None:
        """Refuse values of the wrong type, NaN, infinity and what is out of range.

        Args:
            names: what a field is called where it was given, such as {"height": "--height"}.

        Raises:
            ArchError: the first wrong value, what was wanted and the remedy.
        """
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and low <= value <= high):
                wanted = "a whole number" if kind is int else "a number"
                called = (names or {}).get(name, name)
                raise ArchError(
                    f"{called} is {shown(value)}; it must be {wanted} from {low:g} to {high:g}, "
                    f"such as {_USUAL[name]}"
                )


_RANGES: dict[str, tuple[Any, float, float]] = {
    "height": (int, 1, LARGEST_SIDE),
    "width": (int, 1, LARGEST_SIDE),
    "num_inference_steps": (int, 1, LARGEST_STEPS),
    "guidance_scale": (int | float, 0, 1000),
    "noise_shift": (int | float, 1e-3, 1000),
    "distilled_guidance_scale": (int | float, 0, 1000),
}
_MAY_BE_NONE = ("noise_shift", "distilled_guidance_scale")
_USUAL = {
    "height": "1024",
    "width": "1024",
    "num_inference_steps": "30",
    "guidance_scale": "2 (1 is off)",
    "noise_shift": "3 (1 is none)",
    "distilled_guidance_scale": "3.5",
}


def shown(value: object) -> str:
    """Return a value for errors; it may be a whole text, or have more digits than anybody reads."""
    long = isinstance(value, int) and abs(value) >= 10**30
    text = "a number of more than 30 digits" if long else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def sampling_defaults(directory: Path) -> Sampling:
    """Return what a model directory's own file says, completed by the general defaults.

    Raises:
        ArchError: the file is damaged, or a value in it is no number or out of range.
    """
    path = directory / SAMPLING_FILE
    if not path.is_file():
        return Sampling()
    remedy = "mend it, or delete it to use general defaults"
    try:
        values = read_json(path, f"{path.parent} is damaged")
        known = {one.name for one in fields(Sampling)}
        sampling = Sampling(**{key: value for key, value in values.items() if key in known})
        sampling.check({name: f"{path}: {name}" for name in known})
    except ArchError as error:
        raise ArchError(f"{error}; {remedy}") from error
    return sampling
