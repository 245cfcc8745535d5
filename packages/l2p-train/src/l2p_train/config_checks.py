"""Which settings of a training go together, beside the range that each has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from l2p_run.places import is_address

from l2p_train.errors import TrainError
from l2p_train.freeze import check_preset

if TYPE_CHECKING:
    from l2p_train.config import TrainConfig


def check_together(config: TrainConfig) -> None:
    """Raise `TrainError` for settings that no run can have at once."""
    _check_places(config)
    check_preset(config.trainable)
    if config.zero_stage not in (0, 1, 2, 3):
        raise TrainError(f"zero_stage is {config.zero_stage}; use 0, 1, 2 or 3")
    if config.offload_optimizer and config.zero_stage == 0:
        raise TrainError("offload_optimizer needs zero_stage 1, 2 or 3")
    if config.optimizer == "muon" and config.zero_stage != 0:
        raise TrainError(
            f'optimizer = "muon" needs whole matrices, and zero_stage = {config.zero_stage} cuts them up; '
            "set zero_stage = 0"
        )
    _check_distillation(config)
    if config.perceptual_features is not None and not config.perceptual_weight:
        raise TrainError(
            f"perceptual_features is {config.perceptual_features}, and perceptual_weight is 0; give a "
            "weight, such as 0.5, or leave both out"
        )
    if config.perceptual_features is not None and not config.perceptual_features.is_dir():
        raise TrainError(
            f"perceptual_features is {config.perceptual_features}, which is no directory; give one with a "
            "vision backbone of transformers, or leave it out for efficientnet-lite0"
        )
    if config.image_terms_from and not (config.perceptual_weight or config.frequency_weight):
        raise TrainError(
            f"image_terms_from is {config.image_terms_from}, and there is no term that it delays; give "
            "perceptual_weight or frequency_weight, or leave it out"
        )
    if config.adapts and not config.lora_targets:
        raise TrainError(
            f'trainable = "{config.trainable}" needs layers to adapt, and lora_targets is empty; name some, '
            'such as ["to_q", "to_v"], or leave it out'
        )
    if config.adapts and config.zero_stage == 3:
        raise TrainError(
            f'trainable = "{config.trainable}" keeps the frozen weights whole, and zero_stage = 3 shares '
            "them; set zero_stage to 0, 1 or 2"
        )
    if config.export == "best" and not config.validation_images:
        raise TrainError('export = "best" needs validation_images > 0')


def _check_places(config: TrainConfig) -> None:
    for name in ("model", "corpus", "output"):
        place = getattr(config, name)
        if isinstance(place, Path) and re.match(r"[a-z][a-z0-9]+:/", str(place)):
            where = "give it as text, not as a Path" if name == "corpus" else "corpus and mirror take one"
            raise TrainError(f"{name} is {str(place)!r}: an address; {where}")
    if config.mirror is not None and not is_address(config.mirror):
        raise TrainError(f"mirror is {config.mirror!r}; it must be an address, such as s3://bucket/run")


def _check_distillation(config: TrainConfig) -> None:
    if config.distil_guidance != 0 and config.distil_guidance <= 1:
        raise TrainError(
            f"distil_guidance is {config.distil_guidance}; it must be above 1, such as 2.5, "
            "or 0 to train without a teacher"
        )
    if config.distil_guidance_range:
        _check_guidance_range(config)
    if config.distils and config.zero_stage == 3:
        raise TrainError(f"{config.distils} needs a whole teacher in every process; use zero_stage 0, 1 or 2")
    if config.distils and (config.perceptual_weight or config.frequency_weight):
        raise TrainError(
            "perceptual_weight and frequency_weight compare with the corpus's image, and a distillation "
            "with a teacher's; leave them or distil_guidance and distil_steps out"
        )
    if config.loss_weighting == "step" and not config.distil_steps:
        raise TrainError(
            'loss_weighting is "step", which weighs the steps that distil_steps learns, and there are '
            'none; set it to "none"'
        )
    if config.distil_steps and config.polish_share:
        raise TrainError(
            "distil_steps trains at the student's own noise levels, and polish_share at another; set "
            "polish_share to 0 (the student's last step learns the polish)"
        )


def _check_guidance_range(config: TrainConfig) -> None:
    from l2p_arch import ArchError
    from l2p_arch.guidance_input import check_range

    if config.distil_guidance:
        raise TrainError(
            f"distil_guidance is {config.distil_guidance}, one guidance, and distil_guidance_range "
            f"{list(config.distil_guidance_range)} is many; leave one of them out"
        )
    try:
        check_range(config.distil_guidance_range, "distil_guidance_range")
    except ArchError as error:
        raise TrainError(str(error)) from None
    if config.trainable == "lora-only":
        raise TrainError(
            'distil_guidance_range adds an input to the model, and trainable = "lora-only" trains '
            'adapters alone; use "lora", or distil_guidance'
        )
