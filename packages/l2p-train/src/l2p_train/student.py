"""The student of a distillation before it trains: what its teacher does not have."""

from __future__ import annotations

from typing import Any

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import FreezePlan


def prepare_student(model: Any, config: TrainConfig) -> None:
    """Make the guidance an input of the loaded model, if that is to be learned.

    Raises:
        TrainError: see `TrainConfig.check_guidance`.
    """
    config.check_guidance(model.guidance_range)
    if config.distil_guidance_range:
        model.take_guidance(*config.distil_guidance_range, seed=config.seed)


def check_trained(config: TrainConfig, plan: FreezePlan, student: Any) -> None:
    """Raise if the new input of a student would not train: it would never hear its number."""
    new = student.guidance_embedder is not None and config.distil_guidance_range
    if new and not any(name.startswith("guidance_embedder.") for name in plan.trainable):
        raise TrainError(
            "distil_guidance_range adds guidance_embedder to the model, and train_patterns or "
            'freeze_patterns keep it from training; let "guidance_embedder.*" train'
        )
