"""What a transfer costs: download, disk, GPU memory and GPU hours, each from counted sizes and stated
assumptions. Nothing here was timed on a GPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_arch.families.facts import FULL_SIZES, FullSize
from l2p_arch.files.part_sizes import SourceWeights, of_directory, published
from l2p_arch.surgery.recipes import resolve_polish
from l2p_eval.geneval.published import GENEVAL_METADATA, PUBLISHED_JUDGES
from l2p_run.places import shorten

from l2p_plan.errors import PlanError
from l2p_plan.flops import ImageFlops, conditioning_of, count_images, passes
from l2p_plan.transfer import Transfer

PNG_BYTES_PER_PIXEL = 1.6  # of a photograph at 1024 px, 24 bits: assumed
WORKSPACE_GB = 6.0  # of a pipeline that paints one batch at 1024 px: assumed
GENEVAL_PROMPTS = 553


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The GPU that hours are computed for."""

    gpu: str = "H100"
    utilisation: float = 0.4  # share of its peak in bf16 that the whole loop reaches: assumed

    @property
    def tflops(self) -> float:
        """Sustained TFLOP/s.

        Raises:
            PlanError: an unknown GPU.
        """
        from l2p_train.flops import PEAK_TFLOPS

        if self.gpu not in PEAK_TFLOPS:
            raise PlanError(f"--gpu {self.gpu} is not known; there is {', '.join(PEAK_TFLOPS)}")
        return PEAK_TFLOPS[self.gpu] * self.utilisation


@dataclass(frozen=True, kw_only=True)
class Costs:
    """GB are 10^9 bytes; hours are those of one GPU."""

    downloads: tuple[str, ...]
    disk_gb: Mapping[str, float]
    gpu_memory_gb: Mapping[str, float]
    gpu_hours: Mapping[str, float]
    tflop: Mapping[str, float]  # of one image: a forward of the source, one of the L2P model, a training step
    assumptions: tuple[str, ...]
    flop: Mapping[str, float] = field(default_factory=dict)  # of the stages that need a GPU

    def text(self, gpus: int) -> list[str]:
        """Return lines for people."""
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
            on = f"on {gpus} GPU{'' if gpus == 1 else 's'}"
            lines.append(f"{on:15} about {sum(self.gpu_hours.values()) / gpus:,.0f} hours")
        return [*lines, *(f"  - {assumption}" for assumption in self.assumptions)]


def estimate_costs(
    transfer: Transfer, machine: Machine, *, family: str, trunk: Mapping[str, Any], model: Path, needs: Any
) -> Costs:
    """Of a whole transfer.

    Args:
        trunk: the source transformer's config.
        model: directory with the pixel model's transformer/config.json.
        needs: the trainer's estimate (`l2p_train.memory.Estimate`).
    """
    train = transfer.train
    parameters = needs.plan.trainable_count + needs.plan.frozen_count
    known = FULL_SIZES.get(family)
    local = transfer.source.directory.is_dir()
    source = of_directory(transfer.source.directory) if local else published(known, parameters)
    stored = {"float32": 4, "bfloat16": 2, "float16": 2}.get(transfer.surgery.dtype or "")
    weight = stored or source.parameter_bytes  # of one in the models
    checkpoints = train.keep_checkpoints + 1 + bool(train.validation_images)  # one is being saved
    caption = conditioning_of(transfer.source, family, trunk)
    texts = transfer.corpus.prompts * sum(value.numel() for value in caption.values())
    flops = count_images(transfer, family, trunk, model, needs.plan)
    work = _work(transfer, family, flops) if flops else {}
    return Costs(
        downloads=(
            *(_downloads(transfer, known, source.disk_bytes / 1e9) if known else ()),
            *_judges(transfer),
        ),
        disk_gb={
            "source": round(source.disk_bytes / 1e9, 4),
            "corpus": round(_corpus_bytes(transfer) / 1e9, 4),
            "initial and final model": round((2 * parameters * weight + source.others_bytes) / 1e9, 4),
            "checkpoints": round(needs.checkpoint_gb * checkpoints, 4),
            "text embeddings": round(texts * 2 / 1e9, 4),
        },
        gpu_memory_gb=_gpu_memory(transfer, source, parameters, needs),
        gpu_hours={name: round(value / (machine.tflops * 1e12 * 3600), 1) for name, value in work.items()},
        tflop=flops.in_tera() if flops else {},
        assumptions=(
            _origin(flops, machine) if flops else "hours: not counted, this model cannot run on meta tensors",
            "text encoding, VAE, prompts and judging come on top: a few percent",
            f"corpus: {PNG_BYTES_PER_PIXEL} bytes a pixel as PNG; evaluation: GenEval's"
            f" {GENEVAL_PROMPTS} prompts",
        ),
        flop=work,
    )


def source_passes(transfer: Transfer, family: str) -> int:
    """Forward passes of the source per image."""
    return passes(transfer.source.num_inference_steps, transfer.source.guidance_scale, family)


def _work(transfer: Transfer, family: str, flops: ImageFlops) -> dict[str, float]:
    """Return FLOPs of the stages that need a GPU."""
    train, evaluation = transfer.train, transfer.evaluation
    of_source = source_passes(transfer, family)
    own = passes(evaluation.num_inference_steps, evaluation.guidance_scale, "l2p")
    if transfer.surgery.recipe == "aligned":
        own += len(resolve_polish(transfer.surgery.polish))
    judged, sets = evaluation.images_per_prompt * GENEVAL_PROMPTS, 1 + evaluation.floor
    return {
        "images": transfer.corpus.images * of_source * flops.painted,
        "training": train.steps * train.batch_size * (flops.trained + flops.again),
        "evaluation": judged * (sets * of_source * flops.source + own * flops.l2p),
    }


def _origin(flops: ImageFlops, machine: Machine) -> str:
    """Return where the hours come from."""
    tera = flops.in_tera()
    return (
        f"hours: {tera['source']} TFLOP a forward of the source, {tera['l2p']} of the L2P model,"
        f" {tera['step']} a training step of one image, counted on meta tensors; {machine.tflops:.0f}"
        f" TFLOP/s sustained ({machine.gpu}, {machine.utilisation:.0%} of its bf16 peak), assumed"
    )


def _gpu_memory(transfer: Transfer, source: SourceWeights, parameters: int, needs: Any) -> dict[str, float]:
    """Return GB of the stages that need a GPU. What judges the images is small beside what paints them."""
    dtype, evaluation = transfer.source.dtype, transfer.evaluation
    painted = source.in_memory(cpu_offload=transfer.corpus.cpu_offload, dtype=dtype)
    judged = max(
        source.in_memory(cpu_offload=evaluation.cpu_offload, dtype=dtype),
        source.in_memory(
            cpu_offload=evaluation.cpu_offload, dtype=evaluation.dtype, pixel_parameters=parameters
        ),
    )
    return {
        "images": round(painted / 1e9 + WORKSPACE_GB, 4),
        "training": round(needs.total_gb, 4),
        "evaluation": round(judged / 1e9 + WORKSPACE_GB, 4),
    }


def _downloads(transfer: Transfer, known: FullSize, gigabytes: float) -> tuple[str, ...]:
    """Return the command, and what it brings; nothing for a source that is there."""
    source = transfer.source
    if source.directory.is_dir():
        return ()
    repository, about = source.repository or known.repository, "about"
    twice = "".join(f' --exclude "{pattern}"' for pattern in known.exclude)
    if repository != known.repository:
        about = f"if it is stored as {known.repository} is, about"
    return (
        f"hf download {repository} --local-dir {shorten(source.directory)}{twice}",
        f"  {about} {gigabytes:.0f} GB; {known.licence}",
    )


def _judges(transfer: Transfer) -> Iterator[str]:
    """Yield what GenEval needs and is not there."""
    evaluation = transfer.evaluation
    for key, repository in PUBLISHED_JUDGES.items():
        directory = evaluation.judges.get(key)
        if directory is not None and not directory.is_dir():
            yield f"hf download {repository} --local-dir {shorten(directory)}"
    if evaluation.metadata is not None and not evaluation.metadata.is_file():
        yield f"{GENEVAL_METADATA} as {shorten(evaluation.metadata)}"


def _corpus_bytes(transfer: Transfer) -> float:
    sizes = transfer.corpus.sizes
    pixels = sum(size.pixels for size in sizes) / len(sizes)  # each bucket gets its share
    return transfer.corpus.images * pixels * PNG_BYTES_PER_PIXEL
