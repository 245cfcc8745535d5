"""What a transfer costs, for `--dry-run`: download, disk, GPU memory and GPU hours, each from counted sizes
and stated assumptions. Nothing here was timed on a GPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l2p_arch.families.facts import FULL_SIZES, FullSize
from l2p_arch.files.part_sizes import SourceWeights, of_directory, published
from l2p_eval.geneval.published import GENEVAL_METADATA, PUBLISHED_JUDGES
from l2p_run.places import shorten
from l2p_run.sizes import Size

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError
from l2p_transfer.sizes import evaluated_size, largest, painted_sizes, source_size, trained_sizes

CAPTION_TOKENS = 256
PNG_BYTES_PER_PIXEL = 1.6  # of a photograph at 1024 px, 24 bits: assumed
WORKSPACE_GB = 6.0  # of a pipeline that paints one batch at 1024 px: assumed
GENEVAL_PROMPTS = 553
SOURCE_PIXELS_PER_TOKEN = 16  # side: 8 px a latent and 2 latents a patch, as in every family listed here
NEARLY_NO_HEAD = (8, 8, 8, 8)  # channels; a thousandth of the trunk's FLOPs
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
    tflop: Mapping[str, float]  # of one image: a forward of the source, one of the L2P model, a training step
    assumptions: tuple[str, ...]
    flop: Mapping[str, float] = field(default_factory=dict)  # of the stages that need a GPU

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
            on = f"on {gpus} GPU{'' if gpus == 1 else 's'}"
            lines.append(f"{on:15} about {sum(self.gpu_hours.values()) / gpus:,.0f} hours")
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
    local = config.source.model.is_dir()
    source = of_directory(config.source.model) if local else published(known, parameters)
    stored = {"float32": 4, "bfloat16": 2, "float16": 2}.get(config.surgery.dtype or "")
    weight = stored or source.parameter_bytes  # of one in the models
    checkpoints = (
        config.train.keep_checkpoints + 1 + bool(config.train.validation_images)
    )  # one is being saved
    texts = config.prompts.count * sum(
        value.numel() for value in _conditioning(config, family, trunk).values()
    )
    flops = _flops(config, family, trunk, model, needs.plan)
    work = _work(config, family, flops) if flops else {}
    return Costs(
        downloads=(
            *(_downloads(config, known, source.disk_bytes / 1e9) if known else ()),
            *_judges(config),
        ),
        disk_gb={
            "source": round(source.disk_bytes / 1e9, 4),
            "corpus": round(_corpus_bytes(config) / 1e9, 4),
            "initial and final model": round((2 * parameters * weight + source.others_bytes) / 1e9, 4),
            "checkpoints": round(needs.checkpoint_gb * checkpoints, 4),
            "text embeddings": round(texts * 2 / 1e9, 4),
        },
        gpu_memory_gb=_gpu_memory(config, source, parameters, needs),
        gpu_hours={name: round(value / (machine.tflops * 1e12 * 3600), 1) for name, value in work.items()},
        tflop=flops.in_tera() if flops else {},
        assumptions=(
            flops.text(machine) if flops else "hours: not counted, this model cannot run on meta tensors",
            "text encoding, VAE, prompts and judging come on top: a few percent",
            f"corpus: {PNG_BYTES_PER_PIXEL} bytes a pixel as PNG; evaluation: GenEval's"
            f" {GENEVAL_PROMPTS} prompts",
        ),
        flop=work,
    )


def _gpu_memory(config: Config, source: SourceWeights, parameters: int, needs: Any) -> dict[str, float]:
    """GB of the stages that need a GPU. What judges the images is small beside what paints them."""
    images, evaluate = config.images, config.evaluate
    painted = source.in_memory(cpu_offload=images.cpu_offload, dtype=config.source.dtype)
    judged = max(
        source.in_memory(cpu_offload=evaluate.cpu_offload, dtype=config.source.dtype),
        source.in_memory(cpu_offload=evaluate.cpu_offload, dtype=evaluate.dtype, pixel_parameters=parameters),
    )
    return {
        "images": round(painted / 1e9 + WORKSPACE_GB, 4),
        "training": round(needs.total_gb, 4),
        "evaluation": round(judged / 1e9 + WORKSPACE_GB, 4),
    }


def _downloads(config: Config, known: FullSize, gigabytes: float) -> tuple[str, ...]:
    """The command, and what it brings; nothing for a source that is there."""
    if config.source.model.is_dir():
        return ()
    repository, about = config.source.repository or known.repository, "about"
    twice = "".join(f' --exclude "{pattern}"' for pattern in known.exclude)
    if repository != known.repository:
        about = f"if it is stored as {known.repository} is, about"
    return (
        f"hf download {repository} --local-dir {shorten(config.source.model)}{twice}",
        f"  {about} {gigabytes:.0f} GB; {known.licence}",
    )


def _judges(config: Config) -> Iterator[str]:
    """What GenEval needs and is not there."""
    section = config.evaluate
    if section.detector == "coco":
        for key, repository in PUBLISHED_JUDGES.items():
            directory = getattr(section, key)
            if directory is not None and not directory.is_dir():
                yield f"hf download {repository} --local-dir {shorten(directory)}"
    if not section.metadata.is_file():
        yield f"{GENEVAL_METADATA} as {shorten(section.metadata)}"


def _corpus_bytes(config: Config) -> float:
    sizes = painted_sizes(config)
    pixels = sum(size.pixels for size in sizes) / len(sizes)  # each bucket gets its share
    return config.prompts.count * config.images.seeds_per_prompt * pixels * PNG_BYTES_PER_PIXEL


@dataclass(frozen=True, kw_only=True)
class _Flops:
    """FLOPs of one image, each at the largest size of its stage."""

    painted: float  # a forward of the source that paints the corpus
    trained: float  # forward and backward of the pixel model
    again: float  # what gradient checkpointing computes a second time
    source: float  # a forward of the source in the evaluation
    l2p: float  # a forward of the pixel model in the evaluation

    def in_tera(self) -> dict[str, float]:
        """What a reader can check."""
        parts = {"source": self.painted, "l2p": self.l2p, "step": self.trained}
        return {name: round(value / 1e12, 1) for name, value in parts.items()}

    def text(self, machine: Machine) -> str:
        """Where the hours come from."""
        tera = self.in_tera()
        return (
            f"hours: {tera['source']} TFLOP a forward of the source, {tera['l2p']} of the L2P model,"
            f" {tera['step']} a training step of one image, counted on meta tensors; {machine.tflops:.0f}"
            f" TFLOP/s sustained ({machine.gpu}, {machine.utilisation:.0%} of its bf16 peak), assumed"
        )


def _work(config: Config, family: str, flops: _Flops) -> dict[str, float]:
    """FLOPs of the stages that need a GPU."""
    train, evaluate, passes = config.train, config.evaluate, source_passes(config, family)
    own = _passes(evaluate.num_inference_steps, evaluate.guidance_scale, "l2p")
    judged = evaluate.images_per_prompt * GENEVAL_PROMPTS
    return {
        "images": config.prompts.count * config.images.seeds_per_prompt * passes * flops.painted,
        "training": train.steps * train.batch_size * (flops.trained + flops.again),
        "evaluation": judged * (passes * flops.source + own * flops.l2p),
    }


def source_passes(config: Config, family: str) -> int:
    """Forward passes of the source per image."""
    source = config.source
    guidance = max(source.guidance_scale, source.pipeline_kwargs.get("true_cfg_scale", 0))
    return _passes(source.num_inference_steps, guidance, family)


def _passes(steps: int, guidance: float, family: str) -> int:
    """Forward passes per image: diffusers' Z-Image guides above 0, FLUX embeds its guidance, others guide
    above 1."""
    guided = guidance > (0 if family == "z-image" else 1) and family != "flux"
    return steps * (2 if guided else 1)


def _flops(config: Config, family: str, trunk: Mapping[str, Any], model: Path, plan: Any) -> _Flops | None:
    """Counted on meta tensors; None for a model that cannot run on them."""
    from l2p_train.flops import flops_or_none

    conditioning = _conditioning(config, family, trunk)

    @cache
    def count(directory: Path, size: Size) -> Any:
        settings = replace(config.train, model=directory)
        return flops_or_none(settings, plan, size, conditioning)

    with TemporaryDirectory() as folder:
        latent = _source_as_counted(Path(folder), family, trunk)
        painted = count(latent, largest(painted_sizes(config)))
        source = count(latent, source_size(config))
        trained = count(model, largest(trained_sizes(config)))
        l2p = count(model, evaluated_size(config))
    if not (painted and source and trained and l2p):
        return None
    return _Flops(
        painted=painted.forward,
        trained=trained.step,
        again=trained.forward if config.train.gradient_checkpointing else 0.0,
        source=source.forward,
        l2p=l2p.forward,
    )


def _source_as_counted(folder: Path, family: str, trunk: Mapping[str, Any]) -> Path:
    """A model directory whose forward has the source's tokens and no Detailer Head worth counting."""
    import torch
    from l2p_arch.model import L2PTransformer

    with torch.device("meta"):
        model = L2PTransformer(
            family=family,
            trunk_config=dict(trunk),
            patch_size=SOURCE_PIXELS_PER_TOKEN,
            head_channels=NEARLY_NO_HEAD,
        )
    model.save_config(folder / "transformer")
    return folder


def _conditioning(config: Config, family: str, trunk: Mapping[str, Any]) -> dict[str, Any]:
    """A caption of the assumed length, by shape."""
    import torch
    from l2p_arch.families import find_family

    width = next((trunk[key] for key in TEXT_WIDTHS if trunk.get(key)), 0)
    tokens = find_family(family).caption_tokens(config.source.max_sequence_length, CAPTION_TOKENS)
    conditioning = {"caption" if family == "z-image" else "text": torch.empty(tokens, width, device="meta")}
    if trunk.get("pooled_projection_dim"):
        conditioning["pooled"] = torch.empty(trunk["pooled_projection_dim"], device="meta")
    return conditioning
