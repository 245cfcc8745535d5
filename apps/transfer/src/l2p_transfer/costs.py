"""What a transfer costs, for `--dry-run`: download, disk, GPU memory and GPU hours, each from counted sizes
and stated assumptions. Nothing here was timed on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError
from l2p_transfer.full_size import FULL_SIZES
from l2p_transfer.paths import shorten

CAPTION_TOKENS = 256
PNG_BYTES_PER_PIXEL = 1.6  # of a photograph at 1024 px, 24 bits: assumed
WORKSPACE_GB = 6.0  # of a pipeline that paints one batch at 1024 px: assumed
GENEVAL_PROMPTS = 553
TEXT_WIDTHS = ("cap_feat_dim", "joint_attention_dim", "caption_channels")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPU that hours are computed for."""

    gpu: str = "H100"
    utilisation: float = 0.4  # share of its peak in bf16 that the whole loop reaches: assumed

    @property
    def tflops(self) -> float:
        """Sustained TFLOP/s.

        Raises:
            TransferError: an unknown GPU.
        """
        from l2p_train.flops import PEAK_TFLOPS

        if self.gpu not in PEAK_TFLOPS:
            raise TransferError(f"--gpu {self.gpu} is not known; there is {', '.join(PEAK_TFLOPS)}")
        return PEAK_TFLOPS[self.gpu] * self.utilisation


@dataclass(frozen=True, kw_only=True)
class Costs:
    """GB are 10^9 bytes; hours are those of one GPU."""

    downloads: tuple[str, ...]
    disk_gb: Mapping[str, float]
    gpu_memory_gb: Mapping[str, float]
    gpu_hours: Mapping[str, float]
    assumptions: tuple[str, ...]

    def text(self, gpus: int) -> list[str]:
        """Lines for people."""
        lines = [*(f"download        {line}" for line in self.downloads)]
        if sum(self.gpu_hours.values()) < 1:
            return lines  # a miniature: nothing worth planning
        for title, values, unit in (
            ("disk", self.disk_gb, "GB"),
            ("GPU memory", self.gpu_memory_gb, "GB"),
            ("GPU hours", self.gpu_hours, "h"),
        ):
            if values:
                total = "" if title == "GPU memory" else f", together {sum(values.values()):,.0f} {unit}"
                parts = ", ".join(f"{name} {value:,.1f}" for name, value in values.items())
                lines.append(f"{title:15} {parts} {unit}{total}")
        if self.gpu_hours:
            lines.append(
                f"{'on ' + str(gpus) + ' GPUs':15} about {sum(self.gpu_hours.values()) / gpus:,.0f} hours"
            )
        return [*lines, *(f"  - {assumption}" for assumption in self.assumptions)]


def estimate_costs(
    config: Config, machine: Machine, *, family: str, trunk: Mapping[str, Any], model: Path, needs: Any
) -> Costs:
    """Of a whole transfer.

    Args:
        trunk: the source transformer's config.
        model: directory with the pixel model's transformer/config.json.
        needs: the trainer's estimate (`l2p_train.memory.Estimate`).
    """
    parameters = needs.plan.trainable_count + needs.plan.frozen_count
    known = FULL_SIZES.get(family)
    others = known.others if known else 0
    published = known.transformer_bytes if known else 2
    source_gb = (parameters * published + others * 2) / 1e9
    downloads: tuple[str, ...] = ()
    if known and not config.source.model.is_dir():
        twice = "".join(f' --exclude "{pattern}"' for pattern in known.exclude)
        downloads = (
            f"hf download {known.repository} --local-dir {shorten(config.source.model)}{twice}",
            f"  about {source_gb:.0f} GB; {known.licence}",
        )
    pixels = config.images.width * config.images.height
    corpus_gb = config.prompts.count * config.images.seeds_per_prompt * pixels * PNG_BYTES_PER_PIXEL / 1e9
    forward, step = _flops(config, family, trunk, model, needs.plan)
    hours = {
        name: round(flops / (machine.tflops * 1e12 * 3600), 1)
        for name, flops in _work(config, family, forward, step).items()
    }
    counted = (
        f"hours: {forward / 1e12:.1f} TFLOP a forward and {step / 1e12:.1f} a training step of one image,"
        f" counted on meta tensors; {machine.tflops:.0f} TFLOP/s sustained ({machine.gpu},"
        f" {machine.utilisation:.0%} of its bf16 peak), assumed"
    )
    return Costs(
        downloads=downloads,
        disk_gb={
            "source": round(source_gb, 1),
            "corpus": round(corpus_gb, 1),
            "initial and final model": round(2 * (parameters + others) * 2 / 1e9, 1),
            "checkpoints": round(needs.checkpoint_gb * config.train.keep_checkpoints, 1),
        },
        gpu_memory_gb={
            "images": round((parameters + others) * 2 / 1e9 + WORKSPACE_GB, 1),
            "training": round(needs.total_gb, 1),
        },
        gpu_hours=hours if forward else {},
        assumptions=(
            counted if forward else "hours: not counted, this model cannot run on meta tensors",
            "text encoding, VAE, prompts and judging come on top: a few percent",
            f"corpus: {PNG_BYTES_PER_PIXEL} bytes a pixel as PNG; evaluation: GenEval's"
            f" {GENEVAL_PROMPTS} prompts",
        ),
    )


def _work(config: Config, family: str, forward: float, step: float) -> dict[str, float]:
    """FLOPs of the stages that need a GPU."""
    train, evaluate, source = config.train, config.evaluate, config.source
    guidance = max(source.guidance_scale, source.pipeline_kwargs.get("true_cfg_scale", 0))
    passes = _passes(source.num_inference_steps, guidance, family)
    own = _passes(evaluate.num_inference_steps, evaluate.guidance_scale, "l2p")
    again = forward if train.gradient_checkpointing else 0
    return {
        "images": config.prompts.count * config.images.seeds_per_prompt * passes * forward,
        "training": train.steps * train.batch_size * (step + again),
        "evaluation": evaluate.images_per_prompt * GENEVAL_PROMPTS * (passes + own) * forward,
    }


def _passes(steps: int, guidance: float, family: str) -> int:
    """Forward passes per image: diffusers' Z-Image guides above 0, FLUX embeds its guidance, others guide
    above 1."""
    guided = guidance > (0 if family == "z-image" else 1) and family != "flux"
    return steps * (2 if guided else 1)


def _flops(
    config: Config, family: str, trunk: Mapping[str, Any], model: Path, plan: Any
) -> tuple[float, float]:
    """(forward, forward and backward) of one image, or zeros for a model that cannot run on meta tensors."""
    from dataclasses import replace

    import torch
    from l2p_train.flops import flops_or_none

    width = next((trunk[key] for key in TEXT_WIDTHS if trunk.get(key)), 0)
    tokens = min(CAPTION_TOKENS, config.source.max_sequence_length)
    conditioning = {"caption" if family == "z-image" else "text": torch.empty(tokens, width, device="meta")}
    if trunk.get("pooled_projection_dim"):
        conditioning["pooled"] = torch.empty(trunk["pooled_projection_dim"], device="meta")
    settings = replace(config.train, model=model)
    counted = flops_or_none(settings, plan, (config.images.height, config.images.width), conditioning)
    return (counted.forward, counted.step) if counted else (0.0, 0.0)
