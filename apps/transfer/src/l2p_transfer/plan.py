"""`--dry-run`: what a config would do, counted on meta tensors; and the checks before a run. Nothing is
written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l2p_arch.families.facts import full_transformer_config
from l2p_run.places import shorten
from l2p_run.stages import is_done, read_marker

from l2p_transfer.config import Config, resolve_processes
from l2p_transfer.costs import Costs, Machine, estimate_costs
from l2p_transfer.detectors import check_detector
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.runner import identities
from l2p_transfer.sizes import evaluated_size, in_words, largest, painted_sizes, source_size, trained_sizes
from l2p_transfer.storage import RunStorage
from l2p_transfer.validation import check_sampling


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: what it will do and where its output goes."""

    title: str
    work: str
    output: str
    done: bool


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """Sizes of the pixel-space model."""

    family: str
    counted_from: str  # the source's config, or the family's full size where there are no weights
    patch_size: int
    grid: tuple[int, int]  # tokens (height, width) of the largest image that is trained
    tokens: int  # its image tokens
    trainable: int  # parameters
    frozen: int
    memory_gb: float  # per training process, estimated
    details: str  # the trainer's own table
    processes: int  # of the training
    costs: Costs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What --dry-run prints."""

    run: str
    source: str
    model: ModelPlan | None
    stages: Sequence[StagePlan]
    problems: Sequence[str]

    def to_row(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        lines = [f"run directory   {self.run}", f"source model    {self.source}"]
        if self.model:
            model = self.model
            total = model.trainable + model.frozen
            lines += [
                f"family          {model.family}, counted from {model.counted_from}",
                f"image tokens    {model.tokens:,} ({model.grid[0]} x {model.grid[1]}, patch"
                f" {model.patch_size}: {model.grid[1] * model.patch_size}x"
                f"{model.grid[0] * model.patch_size} px)",
                f"parameters      {total:,}: {model.trainable:,} train ({model.trainable / total:.1%}),"
                f" {model.frozen:,} frozen",
                f"memory          {model.memory_gb:.2f} GB per training process (estimate)",
                "",
                *(f"  {line}" if line else "" for line in model.details.splitlines()),
                "",
                *model.costs.text(model.processes),
            ]
        lines += ["", "stages"]
        width = max(len(stage.title) for stage in self.stages)
        work = max(len(stage.work) for stage in self.stages)
        for stage in self.stages:
            state = "done" if stage.done else "to do"
            lines.append(f"  {stage.title:{width}}  {stage.work:{work}}  {state:5}  {stage.output}")
        lines += ["", "Nothing was written."]
        return "\n".join(lines)


def make_plan(config: Config, machine: Machine | None = None) -> Plan:
    """Counts what can be counted; what is missing is listed in `problems`, not raised.

    Args:
        machine: the GPU that hours are computed for; by default an H100 at 40 % of its peak.
    """
    problems = [str(error) for error in _problems(config)]
    known = config.source.model.is_dir() or config.source.family
    model = _plan_model(config, machine or Machine()) if known else None
    return Plan(
        run=str(shorten(config.run.output)),
        source=str(shorten(config.source.model)),
        model=model,
        stages=list(_plan_stages(config)),
        problems=problems,
    )


def check_inputs(config: Config) -> None:
    """Raises the first thing that would make a stage fail later, before anything is written."""
    for problem in _problems(config):
        raise problem


def _problems(config: Config) -> Iterator[Exception]:
    """Everything that the stages need and cannot find."""
    checks = (
        _check_storage,
        _check_source,
        check_sampling,
        _check_prompts,
        _check_detector,
        _check_features,
        _check_metadata,
        _check_gpus,
    )
    for check in checks:
        try:
            check(config)
        except ValueError as error:
            yield error


def _check_storage(config: Config) -> None:
    RunStorage(config, RunPaths(config.run.output)).reachable()


def _check_source(config: Config) -> None:
    from l2p_arch.surgery.aligned import check_vae
    from l2p_arch.surgery.source import open_source

    if not config.source.model.is_dir():
        raise TransferError(
            f"source.model {shorten(config.source.model)} does not exist; give a diffusers directory"
        )
    source = open_source(config.source.model)
    if config.surgery.recipe == "aligned":
        check_vae(source)


def _check_prompts(config: Config) -> None:
    from l2p_data.models import local_directory
    from l2p_data.prompts.grammar import load_grammar
    from l2p_data.prompts.taxonomy import load_taxonomy

    from l2p_transfer.language import prompts_of_file

    if config.prompts.engine == "grammar" and config.prompts.grammar:
        load_grammar(config.prompts.grammar)
    elif config.prompts.engine == "file" and config.prompts.file:
        prompts_of_file(config.prompts.file)
    elif config.prompts.engine == "vllm" and config.prompts.llm:
        local_directory(config.prompts.llm, "config.json", "a transformers language model")
    if config.prompts.taxonomy:
        load_taxonomy(config.prompts.taxonomy)


def _check_detector(config: Config) -> None:
    check_detector(config.evaluate)


def _check_features(config: Config) -> None:
    from l2p_eval.metrics.features import EXTRACTORS

    if config.evaluate.features not in EXTRACTORS:
        raise TransferError(
            f"evaluate.features is {config.evaluate.features!r}; there is {', '.join(EXTRACTORS)}"
        )


def _check_metadata(config: Config) -> None:
    from l2p_eval.geneval import read_metadata

    read_metadata(config.evaluate.metadata)


def _check_gpus(config: Config) -> None:
    from l2p_train.processes import usable_gpus

    if (
        read_marker(config.run.output, "training").get("state") != "done"
    ):  # else what is left may run on a smaller machine
        check_processes(config, usable_gpus())


def check_processes(config: Config, gpus: int) -> None:
    """Raises for a training of more processes than this machine's GPUs: hours of painting come before it.

    Args:
        gpus: 0 on a CPU, which takes any number.
    """
    if not config.cluster.address and 0 < gpus < config.processes:
        raise TransferError(
            f"train.processes is {config.processes}, this machine has {gpus} GPU{'' if gpus == 1 else 's'};"
            f" give {gpus} or fewer, or the cluster.address of a cluster"
        )


def _plan_model(config: Config, machine: Machine) -> ModelPlan:
    """The pixel-space model on meta tensors: no memory, no weights."""
    import torch
    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery.aligned import recipe_config
    from l2p_train.memory import estimate

    family, trunk, counted_from = _trunk_config(config)
    patch, (width, height) = config.surgery.patch_size, largest(trained_sizes(config))
    with torch.device("meta"):
        model = L2PTransformer(
            family=family,
            trunk_config=dict(trunk),
            patch_size=patch,
            head_channels=config.surgery.head_channels,
            **recipe_config(config.surgery.recipe, config.surgery.decoder),
        )
    with TemporaryDirectory() as folder:  # the trainer counts from a model directory, and there is none yet
        model.save_config(Path(folder) / "transformer")
        settings = replace(config.train, model=Path(folder))
        processes = resolve_processes(config)
        needs = estimate(settings, processes, height=height, width=width)
        costs = estimate_costs(config, machine, family=family, trunk=trunk, model=Path(folder), needs=needs)
    return ModelPlan(
        family=family,
        counted_from=counted_from,
        patch_size=patch,
        grid=(height // patch, width // patch),
        tokens=needs.image_tokens,
        trainable=needs.plan.trainable_count,
        frozen=needs.plan.frozen_count,
        memory_gb=round(needs.total_gb, 3),
        details=needs.text(),
        processes=processes,
        costs=costs,
    )


def _trunk_config(config: Config) -> tuple[str, Mapping[str, Any], str]:
    """(family, transformer config, where that came from)."""
    from l2p_arch.families import find_family
    from l2p_arch.surgery.source import open_source

    if not config.source.model.is_dir() and config.source.family:
        family = find_family(config.source.family)
        full = full_transformer_config(family.name, family.transformer_class)
        return family.name, full, f"the full size of {family.name} (source.model is not there)"
    source = open_source(config.source.model)
    trunk = {key: value for key, value in source.transformer_config.items() if not key.startswith("_")}
    return source.family.name, trunk, "the source's config"


def _plan_stages(config: Config) -> Iterator[StagePlan]:
    paths, prompts, train = RunPaths(config.run.output), config.prompts, config.train
    painted, trained = painted_sizes(config), trained_sizes(config)
    resized = "" if trained == painted else f", resized to {in_words(trained)}"
    source, l2p = in_words([source_size(config)]), in_words([evaluated_size(config)])
    work = {
        "prompts": (f"{prompts.count:,} prompts, engine {prompts.engine}", paths.prompts),
        "filter": ("keep or drop, with a reason", paths.filtered),
        "images": (
            f"{_images(prompts.count * config.images.seeds_per_prompt)} of {in_words(painted)}",
            train.corpus,
        ),
        "surgery": (_surgery_in_words(config), paths.initial),
        "training": (f"{train.steps:,} steps of {_images(train.batch_size)}{resized}", paths.train),
        "evaluation": (
            f"{_images(config.evaluate.images_per_prompt)} a prompt, {l2p}"
            + ("" if source == l2p else f"; of the source {source}"),
            paths.evaluation,
        ),
        "report": ("report.html, report.md", paths.report),
    }
    for stage, known in identities(config):
        yield StagePlan(
            title=stage.title,
            work=work[stage.name][0],
            output=str(where if isinstance(where := work[stage.name][1], str) else shorten(where)),
            done=is_done(paths.root, stage.name, known),
        )


def _surgery_in_words(config: Config) -> str:
    from l2p_arch.surgery.aligned import DECODERS, resolve_decoder, resolve_start

    surgery = config.surgery
    if surgery.recipe == "paper":
        return f"patch {surgery.patch_size}, {surgery.initialisation}"
    decoder = resolve_decoder(surgery.decoder)
    runs = "VAE and transformer" if DECODERS[decoder].runs_source else "VAE"
    start = resolve_start(surgery.initialisation)
    return f"patch {surgery.patch_size}, aligned, decoder {decoder}, {start}; runs the source's {runs}"


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"
