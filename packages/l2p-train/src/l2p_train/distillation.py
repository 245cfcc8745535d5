"""Guidance distillation (Meng et al. 2023): a student whose one pass is what its teacher needs two for.

The teacher is the model that the run starts from. With classifier-free guidance of scale s it paints along
v_neg + s (v_pos - v_neg), two passes a step. The student learns that velocity itself: eq. 5 with the guided
velocity in place of noise - x_0. It is then sampled without guidance, and a sampler of as many steps costs
half the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import reduce
from l2p_arch.sampling.guidance import guided
from torch import Tensor
from torch.nn.functional import mse_loss

from l2p_train.config import TrainConfig
from l2p_train.freeze import FreezePlan
from l2p_train.objective import Conditioning, VelocityModel, interpolate
from l2p_train.zero.engine import load_model
from l2p_train.zero.quantised import quantise_frozen


class GuidedTeacher:
    """The model that a run starts from, frozen, with its guidance.

    Args:
        model: predicts velocities; it is set to evaluation and gets no gradient.
        scale: s of v_neg + s (v_pos - v_neg), above 1.
        empty: conditioning of the empty prompt, which guidance leads away from.
    """

    def __init__(self, model: Any, scale: float, empty: Conditioning) -> None:
        self.model, self.scale, self.empty = model.eval().requires_grad_(False), scale, empty

    @torch.no_grad()
    def velocity(self, x_t: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        """The guided velocity at x_t (B, 3, H, W) and sigma (B,), float32."""
        both = self.model(
            torch.cat((x_t, x_t)), torch.cat((sigma, sigma)), [*conditioning, *[self.empty] * len(x_t)]
        ).float()
        with_prompt, without = both.chunk(2)
        return guided(with_prompt, without, self.scale)


def load_teacher(config: TrainConfig, plan: FreezePlan, student: Any, empty: Conditioning) -> GuidedTeacher:
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
    return GuidedTeacher(model.to(next(student.parameters()).device), config.distil_guidance, empty)


def distillation_loss(
    model: VelocityModel,
    teacher: GuidedTeacher,
    x_0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    conditioning: Sequence[Conditioning],
) -> Tensor:
    """Return eq. 5 per sample, (B,), with the teacher's guided velocity as its target.

    Args:
        model: the student.
        teacher: whom it imitates.
        x_0: (B, 3, H, W) pixels in [-1, 1].
        noise: (B, 3, H, W) standard normal.
        sigma: (B,) in [0, 1]; 0 = image, 1 = noise.
        conditioning: of each sample.
    """
    x_t = interpolate(x_0, noise, sigma)
    wanted = teacher.velocity(x_t, sigma, conditioning)
    squared_error = mse_loss(model(x_t, sigma, conditioning).float(), wanted, reduction="none")
    return reduce(squared_error, "b c h w -> b", "mean")
