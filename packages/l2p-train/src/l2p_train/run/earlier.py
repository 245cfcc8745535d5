"""What a run's earlier checkpoints are worth, for a curve over steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l2p_train.config import TrainConfig
from l2p_train.run.checkpoint import list_checkpoints
from l2p_train.run.export import export_model


def judge_earlier(
    config: TrainConfig, scratch: Path, judge: Callable[[Path, Path], Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return {"step", "metrics"} of every checkpoint before the last one, oldest first.

    Args:
        config: of a finished run; `keep_checkpoints` says how many checkpoints there are.
        scratch: a folder for one model at a time, emptied at the end.
        judge: takes `scratch` and a model directory in it; returns metrics.
    """
    found = []
    for checkpoint in list_checkpoints(config.output / "checkpoints")[:-1]:
        model = export_model(config.model, checkpoint, scratch / "model")
        found.append({"step": checkpoint.step, "metrics": dict(judge(scratch, model))})
    shutil.rmtree(scratch, ignore_errors=True)
    return found
