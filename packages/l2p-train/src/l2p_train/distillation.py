"""Distillation: a student whose one pass does what its teacher, the model that the run starts from, does in
several.

Of guidance (Meng et al. 2023, arXiv 2210.03142, sec. 3.1). With classifier-free guidance of scale s the
teacher paints along v_neg + s (v_pos - v_neg), two passes a step. The student learns that velocity itself:
eq. 5 with the guided velocity in place of noise - x_0. It is then sampled without guidance. One scale is
learned so, or a range of them: every sample then has a scale of its own, which the student is told as a
number (`L2PTransformer.take_guidance`), so that it is chosen when the student is sampled.

Of steps (after progressive distillation, Salimans & Ho 2022, arXiv 2202.00512, sec. 3). The student will be
sampled at N fixed noise levels. From x_t at one of them the teacher makes k smaller Euler steps to the next
one, guided; the student learns the straight way there, (x_t - x_next) / (sigma - sigma_next), which is what
one Euler step of its own follows. With k = 1 this is the distillation of guidance on N levels. Where the
teacher polishes its finished images, the last step of the student leads to the polished one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from einops import reduce
from l2p_arch.polish import polished
from l2p_arch.sampling.guidance import guided
from l2p_arch.sampling.schedule import flow_schedule
from torch import Tensor
from torch.nn.functional import mse_loss

from l2p_train.config import TrainConfig
from l2p_train.errors import TrainError
from l2p_train.freeze import FreezePlan
from l2p_train.noise import shift_sigma
from l2p_train.objective import Conditioning, VelocityModel, interpolate
from l2p_train.zero.engine import load_model
from l2p_train.zero.quantised import quantise_frozen


class Teacher:
    """The model that a run starts from, frozen, as it is sampled.

    Args:
        model: predicts velocities; it is set to evaluation and gets no gradient.
        scale: s of v_neg + s (v_pos - v_neg); 1 or less is one pass without guidance. None: each sample's
            own, the "guidance" of its conditioning, which a model that takes it as a number is told.
        empty: conditioning of the empty prompt, which guidance leads away from.
        steps: N, the student's; 0: it keeps the teacher's schedule, whatever that is.
        substeps: k, the teacher's in one of them.
        shift: of the schedule, the model's noise scale included.
        polish: sigmas at which a finished image is denoised once more, see `L2PPipeline`.
    """

    def __init__(
        self,
        model: Any,
        scale: float | None,
        empty: Conditioning,
        *,
        steps: int = 0,
        substeps: int = 1,
        shift: float = 1.0,
        polish: Sequence[float] = (),
    ) -> None:
        self.model, self.scale, self.empty = model.eval().requires_grad_(False), scale, empty
        self.steps, self.substeps, self.shift, self.polish = steps, substeps, shift, polish

    @torch.no_grad()
    def velocity(self, x_t: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        """Return the guided velocity at x_t (B, 3, H, W) and sigma (B,), float32."""
        told = self.model.guidance_range is not None
        if told or (self.scale is not None and self.scale <= 1):
            alone: Tensor = self.model(x_t, sigma, conditioning).float()
            return alone
        # What a family embeds of its own stays at its default: the student's number is the scale from here.
        texts = [_text_of(sample) for sample in conditioning]
        both = self.model(
            torch.cat((x_t, x_t)), torch.cat((sigma, sigma)), [*texts, *[self.empty] * len(x_t)]
        ).float()
        with_prompt, without = both.chunk(2)
        if self.scale is not None:
            return guided(with_prompt, without, self.scale)
        scales = torch.stack([sample["guidance"] for sample in conditioning]).to(both)
        return without + _per_sample(scales) * (with_prompt - without)

    @torch.no_grad()
    def target(self, x_t: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        """Return what the student's velocity at x_t (B, 3, H, W) and sigma (B,) should be, float32.

        Args:
            sigma: with `steps`, levels of that schedule.
        """
        if not self.steps:
            return self.velocity(x_t, sigma, conditioning)
        levels = self.levels(sigma)
        x = x_t
        for now, then in pairwise(levels):
            x = x + _per_sample(then - now) * self.velocity(x, now, conditioning)
        finished = levels[-1] == 0
        if self.polish and bool(finished.any()):
            texts = [one for one, last in zip(conditioning, finished.tolist(), strict=True) if last]
            x = x.index_put((finished,), self._polished(x[finished], texts))
        return (x_t - x) / _per_sample(sigma - levels[-1])

    def levels(self, sigma: Tensor) -> list[Tensor]:
        """Return the noise levels (B,) of the teacher's way from sigma (B,) to the student's next, k + 1 of
        them.
        """
        count = self.steps * self.substeps
        place = torch.round(shift_sigma(sigma.double(), 1 / self.shift) * count)
        ways = [shift_sigma((place - back) / count, self.shift).float() for back in range(self.substeps + 1)]
        return [sigma.float(), *ways[1:]]

    def _polished(self, x_0: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        conditioning = [_text_of(sample) for sample in conditioning]  # as the pipeline does it, unguided
        return polished(x_0, self.polish, lambda x_t, sigma: self.model(x_t, sigma, conditioning).float())


GuidedTeacher = Teacher
"""The name of before there were steps to distil."""


def load_teacher(config: TrainConfig, plan: FreezePlan, student: Any, empty: Conditioning) -> Teacher:
    """Load the teacher of a run beside its student, on the student's device.

    What the student does not train is the same in both, and is held once: the teacher costs the memory of
    what trains. Call it when the student is where it trains.
    """
    model = load_model(config)
    if config.frozen_weights == "int8":
        quantise_frozen(model, plan)
    trained = set(plan.trainable)
    held = {name: value for name, value in student.named_parameters() if name not in trained}
    held |= dict(student.named_buffers())
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in held:
            value.data = held[name].data
    return Teacher(
        model.to(next(student.parameters()).device),
        None if config.distil_guidance_range else config.distil_guidance,
        empty,
        steps=config.distil_steps,
        substeps=config.distil_substeps,
        shift=config.noise_shift * model.noise_scale,
        polish=model.polish,
    )


def distillation_loss(
    model: VelocityModel,
    teacher: Teacher,
    x_0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Sequence[Conditioning],
) -> Tensor:
    """Return eq. 5 per sample, (B,), with `Teacher.target` in place of noise - x_0.

    Args:
        model: the student.
        teacher: whom it imitates.
        x_0: (B, 3, H, W) pixels in [-1, 1].
        noise: (B, 3, H, W) standard normal.
        sigma: (B,) in [0, 1]; 0 = image, 1 = noise.
        conditioning: of each sample.
    """
    x_t = interpolate(x_0, noise, sigma)
    wanted = teacher.target(x_t, sigma, conditioning)
    squared_error = mse_loss(model(x_t, sigma, conditioning).float(), wanted, reduction="none")
    return reduce(squared_error, "b c h w -> b", "mean")


def step_weight(steps: int, shift: float) -> Callable[[Tensor], Tensor]:
    """Return the weight "step": how far the student's step from sigma goes, of mean 1 over its steps.

    The steps of a shifted schedule crowd at high noise, where one hardly moves the image; the last is by far
    the longest. Weighed by their lengths they sum to the integral of the error along the way.

    Args:
        steps: N, the student's.
        shift: of the schedule, the model's noise scale included.

    Returns:
        A function of sigma (B,), levels of that schedule.
    """

    def weight(sigma: Tensor) -> Tensor:
        place = torch.round(shift_sigma(sigma.double(), 1 / shift) * steps)
        now, then = (shift_sigma((place - back) / steps, shift) for back in (0, 1))
        return (steps * (now - then)).to(sigma.dtype)

    return weight


def check_schedule(scheduler: Any, config: TrainConfig, noise_scale: float) -> None:
    """Raise unless the model's scheduler will make the Euler steps that its student learns.

    Args:
        scheduler: the model's.
        noise_scale: see `L2PTransformer.noise_scale`.
    """
    if not config.distil_steps:
        return
    made = flow_schedule(
        scheduler,
        config.distil_steps,
        noise_shift=config.noise_shift,
        image_tokens=1,
        device=torch.device("cpu"),
        changes={},
        noise_scale=noise_scale,
    )
    even = torch.arange(config.distil_steps, -1, -1, dtype=torch.float64) / config.distil_steps
    wanted = shift_sigma(even, config.noise_shift * noise_scale).float()
    name = type(scheduler).__name__
    plain = name == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.get("stochastic_sampling")
    if not plain or made.sigmas.shape != wanted.shape or not torch.allclose(made.sigmas, wanted, atol=1e-4):
        raise TrainError(
            f"distil_steps learns evenly spaced Euler steps, and the model's scheduler ({name}) makes others;"
            " put a FlowMatchEulerDiscreteScheduler without terminal shift, noise or sigmas of its own there"
        )


def _text_of(conditioning: Conditioning) -> Conditioning:
    """Return the conditioning without the guidance that is told as a number."""
    return {key: value for key, value in conditioning.items() if key != "guidance"}


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]
