"""Where the curves go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio. Each through its own
library, in its own defaults: an account, a server or an offline mode is configured as that library says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from l2p_run.errors import one_line

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError


class Tracker(Protocol):
    """What the reporter needs of a place for curves."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Show a PNG file."""

    def close(self) -> None:
        """Flush and end."""


class TensorBoard:
    """Event files in `output/tensorboard`."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(config.output / "tensorboard"), purge_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Show a PNG file."""
        import numpy as np
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path)), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class _Run:
    """What wandb and trackio, whose interface is the same, do with an open run."""

    _library: Any
    _run: Any

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Show a PNG file."""
        self._run.log({name: self._library.Image(str(path))}, step=step)

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


class WeightsAndBiases(_Run):
    """One W&B run per run directory, gone on with when it resumes. WANDB_MODE=offline needs no account."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        import wandb

        self._library = wandb
        self._run = wandb.init(
            project=config.tracker_project,
            dir=str(config.output),
            id=_run_name(config),
            name=config.output.name,
            resume="allow",
            config=config.to_dict(),
        )


class Trackio(_Run):
    """Trackio's local database; `trackio show` serves it. TRACKIO_DIR says where it lies."""

    def __init__(self, config: TrainConfig, first_step: int) -> None:
        import trackio

        self._library = trackio
        self._run = trackio.init(
            project=config.tracker_project,
            name=_run_name(config),
            resume="allow",
            config=config.to_dict(),
            embed=False,
        )


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}


def open_trackers(config: TrainConfig, first_step: int) -> list[Tracker]:
    """Open what the config asks for.

    Raises:
        TrainError: a library is not installed, or refuses (no login).
    """
    names = (*(("tensorboard",) if config.tensorboard else ()), *config.trackers)
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(TRACKERS[name](config, first_step))
        except ModuleNotFoundError as error:
            raise TrainError(
                f"trackers names {name!r}, but {error.name} is not installed; install l2p-train[{name}]"
            ) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != name:  # no word of the library's own
                raise
            raise TrainError(
                f"trackers names {name!r}, which refuses: {one_line(error)}; log in to it first, have it "
                "work offline (WANDB_MODE=offline), or leave it out"
            ) from error
    return opened


def _run_name(config: TrainConfig) -> str:
    """Return a name that is the same whenever the same run directory resumes."""
    import hashlib

    where = str(config.output.absolute())
    return f"{config.output.name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
