"""DeepSpeed's settings: what a `TrainConfig` means to ZeRO."""

from __future__ import annotations

from typing import Any

import torch

from l2p_train.config import TrainConfig

LIVE_PARAMETERS = 5 * 10**8  # elements that ZeRO-3 keeps gathered at a time


def bucket_elements(config: TrainConfig, trainable: int) -> int:
    """Return how many of `trainable` gradients are reduced (and with offload sent to the host) at a time."""
    return min(10**8 if config.offload_optimizer else 5 * 10**8, trainable)


def deepspeed_config(config: TrainConfig, processes: int, trainable: int = 10**9) -> dict[str, Any]:
    """Return DeepSpeed's settings; everything a user chooses is in `TrainConfig`.

    Args:
        trainable: elements that train. ZeRO-3 sets a whole bucket aside, which need not be larger.
    """
    micro, accumulation = config.batch_layout(processes)
    settings: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": torch.cuda.is_available()},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",  # DeepSpeed's default follows the weights: bf16 sums of gradients
        "steps_per_print": 2**31,
    }
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        if config.zero_stage > 0:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    zero = settings["zero_optimization"]
    if config.zero_stage > 0:
        zero["reduce_bucket_size"] = bucket_elements(config, trainable)
    if config.zero_stage == 3:
        zero["stage3_max_live_parameters"] = LIVE_PARAMETERS
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return settings
