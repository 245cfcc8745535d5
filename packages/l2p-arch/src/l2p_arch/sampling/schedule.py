"""The sigmas of one sampling call, with any of diffusers' schedulers that can sample by flow matching."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from l2p_arch.errors import ArchError


def flow_schedule(
    scheduler: Any,
    steps: int,
    *,
    noise_shift: float | None,
    image_tokens: int,
    device: torch.device,
    changes: Mapping[str, Any],
    dynamic_shift: Callable[[int, int], float] | None = None,
    sigmas: Sequence[float] | None = None,
    noise_scale: float = 1.0,
) -> Any:
    """Return a scheduler of this call's own, its sigmas evenly spaced from 1 to 1/steps before the shift.

    Args:
        scheduler: the pipeline's; it stays as it is.
        noise_shift: shift of the sigmas; None keeps the scheduler's own.
        noise_scale: what multiplies either, see `L2PTransformer.noise_scale`.
        image_tokens: of one image, for schedulers that shift by its size.
        dynamic_shift: (image tokens, steps) -> mu of such schedulers; None: linear in the tokens.
        changes: to the config of a scheduler that samples by something else than flow matching.
        sigmas: before the shift, descending from at most 1 to above 0, in place of `steps` even ones.

    Raises:
        ArchError: no step, a shift that is not positive, or a scheduler that cannot sample by flow matching,
            or whose sigmas do not lead to 0.
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ArchError(f"num_inference_steps {steps} must be a whole number of at least 1")
    if noise_shift is not None and not 0 < noise_shift < math.inf:
        raise ArchError(f"noise_shift {noise_shift} must be positive; 1 means none, 3 is usual at 1024 px")
    even = np.linspace(1, 1 / steps, steps) if sigmas is None else _checked(sigmas)
    own, changed = scheduler.config, dict[str, Any]()
    dynamic = noise_shift is None and bool(own.get("use_dynamic_shifting"))
    if noise_scale != 1 and not dynamic:
        shift = getattr(scheduler, "shift", None) or own.get("shift") or own.get("flow_shift") or 1.0
        noise_shift = noise_scale * (float(shift) if noise_shift is None else noise_shift)
    if not type(scheduler).__name__.startswith("FlowMatch"):
        changed = {key: value for key, value in changes.items() if key in own}
        wanted = {**own, **changed}
        if not wanted.get("use_flow_sigmas") or wanted.get("prediction_type") != "flow_prediction":
            raise ArchError(
                f"{type(scheduler).__name__} does not sample by flow matching; use a FlowMatch "
                "scheduler, or one with use_flow_sigmas=True and prediction_type='flow_prediction'"
            )
    if noise_shift is None and isinstance(getattr(type(scheduler), "shift", None), property):
        changed["shift"] = scheduler.shift  # set_shift keeps it beside the config
    if len(even) == 1 and own.get("shift_terminal"):
        changed["shift_terminal"] = (
            None  # stretches the schedule so that its last sigma, here the first, is that
        )
    if noise_shift is not None:
        changed["flow_shift" if "flow_shift" in own else "shift"] = noise_shift
        changed |= {"use_dynamic_shifting": False} if "use_dynamic_shifting" in own else {}
    scheduler = type(scheduler).from_config(own, **changed)
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    options: dict[str, Any] = {"device": device}
    if "sigmas" in accepted:
        options["sigmas"] = even
    elif sigmas is not None:
        raise ArchError(
            f"{type(scheduler).__name__} takes no sigmas of a caller's; leave them out, or use a FlowMatch "
            "scheduler"
        )
    else:
        options["num_inference_steps"] = steps
    if scheduler.config.get("use_dynamic_shifting"):
        mu = (
            dynamic_shift(image_tokens, len(even))
            if dynamic_shift
            else _dynamic_shift(scheduler.config, image_tokens)
        )
        exponential = scheduler.config.get("time_shift_type", "exponential") == "exponential"
        options["mu"] = mu + math.log(noise_scale) if exponential else mu * noise_scale
    scheduler.set_timesteps(**options)
    made = scheduler.sigmas
    if not (bool(torch.isfinite(made).all()) and made.max() <= 1 and made.min() >= 0 and made[-1] == 0):
        raise ArchError(
            f"{type(scheduler).__name__}, as it is configured, goes from sigma {float(made.max()):.3g} to "
            f"{float(made[-1]):.3g}, where flow matching goes from 1 to 0; leave out use_karras_sigmas "
            "and the like, and set final_sigmas_type='zero'"
        )
    scheduler.set_begin_index(0)  # looked for among timesteps that are rounded, it may be found a step late
    return scheduler


def _checked(sigmas: Sequence[float]) -> np.ndarray:
    """Return a caller's sigmas, if they go down from at most 1 and stay above 0, as NaN does not."""
    try:
        given = np.asarray(list(sigmas), dtype=np.float64)
    except (TypeError, ValueError):
        raise ArchError(f"sigmas is {sigmas!r}; wanted a list of numbers, such as [1.0, 0.7, 0.3]") from None
    if not (len(given) and given[0] <= 1 and given[-1] > 0 and bool((np.diff(given) < 0).all())):
        raise ArchError(
            f"sigmas {list(sigmas)} must go down from at most 1 to above 0, each smaller than the one before "
            "(the scheduler adds the last one, 0)"
        )
    return given


def _dynamic_shift(config: Any, tokens: int) -> float:
    """Return the exponent mu of schedulers that shift by image size: linear in the number of tokens."""
    low, high = (config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096))
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return base + (top - base) * (tokens - low) / (high - low)
