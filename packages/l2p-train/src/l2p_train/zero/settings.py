"""DeepSpeed's settings: what a `TrainConfig` means to ZeRO."""

from __future__ import annotations

from typing import Any

import torch

from l2p_train.config import TrainConfig

LIVE_PARAMETERS = 5 * 10**8  # elements that ZeRO-3 keeps gathered at a time
BUCKET_ELEMENTS = 10**8  # of gradients; each takes 10 bytes of a GPU, and more of them make nothing quicker


def bucket_elements(trainable: int) -> int:
    """Return how many of `trainable` gradients are reduced (and with offload sent to the host) at a time."""
    return min(BUCKET_ELEMENTS, trainable)


def bucket_bytes(config: TrainConfig, trainable: int, largest: int) -> int:
    """Return what gradients on their way to be reduced take of a GPU, at the worst moment of a step.

    DeepSpeed 0.19.8: `setup_buckets` and `allreduce_bucket` of stage_1_and_2.py; `ipg_buckets` of stage3.py
    and `reduce_scatter_coalesced`.

    Args:
        trainable: elements that train.
        largest: elements of the largest tensor among them; one beyond the bucket is reduced alone.
    """
    bucket = bucket_elements(trainable)
    moving = max(bucket, largest)
    in_bf16 = config.precision == "bf16"
    if config.zero_stage == 0 or (config.zero_stage == 1 and in_bf16 and not config.offload_optimizer):
        return 0  # reduced after the backward pass, where its activations were
    if config.zero_stage == 3:
        return 4 * bucket + 4 * moving  # a float32 bucket and its order by process
    value = 2 if in_bf16 and config.zero_stage == 2 else 4
    summed = 4 if value == 2 else 0  # bf16 gradients are summed in float32
    # Two buckets, one filling while the other is reduced (on a CPU one), and the flat copy that is reduced.
    return 2 * value * bucket + (value + summed) * moving


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
        zero["reduce_bucket_size"] = bucket_elements(trainable)
    if config.zero_stage == 3:
        zero["stage3_max_live_parameters"] = LIVE_PARAMETERS
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return settings
