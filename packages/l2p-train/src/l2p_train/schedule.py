"""Learning-rate schedules and EMA decay: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from l2p_train.config import TrainConfig


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return the learning rate of optimiser step `step` (0-based) over the peak rate, in [0, 1]."""
    warmup = config.warmup_steps
    if config.schedule == "one-cycle":
        warmup = warmup or max(1, round(0.3 * config.steps))
        if step < warmup:  # from 1/25 of the peak, on half a cosine
            return 0.04 + 0.96 * _rise((step + 1) / warmup)
    elif step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup + 1) / max(1, config.steps - warmup))
    return config.final_rate + (1 - config.final_rate) * (1 - _rise(progress))


def ema_decay(step: int, config: TrainConfig) -> float:
    """Return the decay used after optimiser step `step` (0-based)."""
    return min(config.ema_decay, (1 + step) / (10 + step)) if config.ema_warmup else config.ema_decay


def _rise(x: float) -> float:
    """Return half a cosine from 0 (x = 0) to 1 (x = 1)."""
    return 0.5 - 0.5 * math.cos(math.pi * x)
