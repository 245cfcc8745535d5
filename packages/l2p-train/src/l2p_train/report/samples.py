"""Sample grids while training: fixed prompts and seeds through `L2PPipeline`, beside the source's images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from l2p_run.errors import raised_as
from l2p_run.places import atomic_path, read_json
from l2p_run.sizes import Size
from torch import Tensor

from l2p_train.config import TrainConfig
from l2p_train.data.conditioning import ConditioningCache
from l2p_train.data.corpus import Corpus, bucket_size
from l2p_train.errors import TrainError


@dataclass(frozen=True)
class SamplePlan:
    """What is drawn at every interval."""

    prompts: tuple[str, ...]
    references: tuple[
        int, ...
    ]  # rows of the corpus with the source's image of each prompt; () for a user's prompts
    size: Size


def plan_samples(config: TrainConfig, corpus: Corpus, patch_size: int) -> SamplePlan:
    """Choose the prompts: the user's, or different ones spread over the corpus, all of one size."""
    sizes = [bucket_size(row.size, config.resolution, patch_size) for row in corpus.rows]
    size = max(set(sizes), key=lambda one: (sizes.count(one), one.shape))
    if config.sample_prompts:
        return SamplePlan(config.sample_prompts, (), size)
    first_row = {
        row.prompt: index for index, row in reversed(list(enumerate(corpus.rows))) if sizes[index] == size
    }
    rows = sorted(first_row.values())
    chosen = [rows[i * len(rows) // config.sample_count] for i in range(config.sample_count)] if rows else []
    chosen = list(dict.fromkeys(chosen))
    return SamplePlan(tuple(corpus.rows[row].prompt for row in chosen), tuple(chosen), size)


def load_scheduler(model_dir: Path) -> Any:
    """Return the model directory's own scheduler."""
    import diffusers

    path = model_dir / "scheduler" / "scheduler_config.json"
    config = raised_as(TrainError)(read_json)(path)
    kind = getattr(diffusers, str(config.get("_class_name")), None) if isinstance(config, dict) else None
    if kind is None:
        raise TrainError(f"{path} names no scheduler of diffusers (_class_name); write the model again")
    return kind.from_config(config)


def draw_samples(
    transformer: Any, scheduler: Any, plan: SamplePlan, conditioning: ConditioningCache, config: TrainConfig
) -> Tensor:
    """Return the images of the plan as uint8 (N, 3, H, W) in every process; collective.

    The prompts are dealt out over the processes, padded to equal shares so that ZeRO-3 stays in step.
    """
    from l2p_arch import L2PPipeline

    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = -(-len(plan.prompts) // processes)
    mine = [(rank * share + i) % len(plan.prompts) for i in range(share)]
    pipeline = L2PPipeline(transformer=transformer, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    was_training = transformer.training
    transformer.eval()
    images = pipeline(
        prompt_conditioning=[conditioning[plan.prompts[i]] for i in mine],
        negative_conditioning=[conditioning[""]] * share,
        height=plan.size.height,
        width=plan.size.width,
        num_inference_steps=config.sample_steps,
        guidance_scale=config.sample_guidance,
        seeds=[config.sample_seed + i for i in mine],
        **({"noise_shift": config.noise_shift, "polish": 0.0} if config.distil_steps else {}),
        output_type="latent",
    ).images
    transformer.train(was_training)
    _refuse_not_finite(images)
    local = ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).contiguous()
    if processes == 1:
        return local[: len(plan.prompts)]
    device = next(transformer.parameters()).device
    parts = [torch.empty_like(local, device=device) for _ in range(processes)]
    torch.distributed.all_gather(parts, local.to(device))
    return torch.cat(parts).cpu()[: len(plan.prompts)]


def _refuse_not_finite(images: Tensor) -> None:
    """Raise in every process if one of them painted NaN or infinity, of which no picture is made."""
    finite = torch.isfinite(images).all().to(torch.int32)
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    if not finite:
        raise TrainError(
            "a sample holds NaN or infinity, though the loss does not: look at sample_guidance; where it is "
            "moderate, the weights have grown beyond what the precision holds: lower the learning rate"
        )


def save_grid(path: Path, plan: SamplePlan, images: Tensor, corpus: Corpus) -> None:
    """Write a picture: below each other the source's images (if known) and ours, one column per prompt."""
    from PIL import Image

    rows = [images]
    if plan.references:
        rows.insert(0, torch.stack([corpus.image(index, plan.size) for index in plan.references]))
    height, width = plan.size.shape
    sheet = np.full((len(rows) * (height + 2) - 2, len(images) * (width + 2) - 2, 3), 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + 2), x * (width + 2)
            sheet[top : top + height, left : left + width] = image.permute(1, 2, 0).numpy()
    with raised_as(TrainError), atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
