"""`Config`: one TOML file that says everything about a transfer, table by table in the order of the stages.

Relative paths start from the directory of the file they stand in; `run.output` and paths given with `--set`
start from the working directory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from l2p_data.filters.filtering import FilterRules
from l2p_data.image_settings import LONGEST_SIDE, ImageSettings
from l2p_data.prompt_settings import PromptSettings
from l2p_run.cluster.settings import ClusterSettings
from l2p_run.config_file import override, read_toml
from l2p_run.errors import raised_as
from l2p_run.settings import (
    check_keys,
    convert,
    cut,
    defaults_of,
    identity_table,
    read_table,
    seed_setting,
    setting,
    table_of,
    to_table,
)
from l2p_run.storage.addresses import is_address
from l2p_run.usage import usable_cores
from l2p_train.config import TrainConfig, config_from_mapping
from l2p_train.run.surgery import SurgerySettings

from l2p_transfer.errors import TransferError
from l2p_transfer.validation import check_config, check_kind, check_storage

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MOST_STEPS = 1000  # that a schedule of 1,000 training steps can be walked in
MOST_PROCESSES = 65_536


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where the run lives. Every file of the run is below `output`, or, with `storage`, also there."""

    output: Path
    storage: str | None = None  # an address such as s3://bucket/run: the corpus, and a copy of all else
    seed: int = seed_setting()  # of prompts, new weights and training; image seeds derive from the prompts


@dataclass(frozen=True, kw_only=True)
class SourceSection:
    """The latent model that is transferred, and how it samples (sec. 4.1: Z-Image-Turbo)."""

    model: Path  # a diffusers text-to-image directory
    num_inference_steps: int = setting(9, ge=1, le=MOST_STEPS)
    guidance_scale: float = setting(0.0, ge=0)
    max_sequence_length: int | None = setting(None, ge=1)  # tokens of a prompt; None: its pipeline's default
    dtype: Dtype = "auto"  # auto: bfloat16 where the machine computes in it, else float32
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict)  # anything else its pipeline takes
    family: str = ""  # only for --dry-run without the weights: a family at its full size
    repository: str | None = None  # only for --dry-run: what to download; None: the family's best known

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of the source's pipeline."""
        length = {} if self.max_sequence_length is None else {"max_sequence_length": self.max_sequence_length}
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            **length,
            **self.pipeline_kwargs,
        }


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """GenEval of the source and of the L2P model, and a Frechet distance between them (sec. 4)."""

    metadata: Path  # evaluation_metadata.jsonl
    detector: str = "scenes"  # scenes: the miniature's exact one; coco: GenEval's, needs the two models below
    detector_model: Path | None = None  # transformers directory of a Mask2Former (Swin-S, COCO instance)
    color_model: Path | None = None  # transformers directory of a CLIP (ViT-L/14)
    width: int | None = setting(None, ge=1, le=LONGEST_SIDE)  # px, with height; None: the training's size
    height: int | None = setting(None, ge=1, le=LONGEST_SIDE)  # px. Both are what l2p-generate paints, too
    images_per_prompt: int = setting(4, ge=1)
    num_inference_steps: int = setting(30, ge=1, le=MOST_STEPS)
    guidance_scale: float = setting(2.0, ge=0)
    noise_shift: float | None = setting(None, gt=0)  # None: the model's scheduler decides
    batch_size: int = setting(16, ge=1)
    cpu_offload: bool = False  # text encoder, transformer, VAE are on the GPU by turns: slower, less memory
    workers: int | None = setting(None, ge=0)  # None: one per GPU or core; 0: the command's own process
    seed: int = seed_setting(42)  # of the first image
    dtype: Dtype = "auto"
    features: str = "efficientnet-lite0"  # for the Frechet distance
    frechet_floor: bool = setting(True, later=True)  # the source paints a second set with other seeds: the
    # distance between its own images, which no model is expected to go below


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """What the report shows."""

    title: str = ""  # heading; the run directory's name by default
    pairs_per_tag: int = setting(4, ge=0)
    failures: int = setting(12, ge=0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole transfer. `train` holds the run's own paths; `processes` is train.processes, 0 for auto."""

    run: RunSection
    source: SourceSection
    prompts: PromptSettings
    filter: FilterRules
    images: ImageSettings
    surgery: SurgerySettings
    train: TrainConfig
    processes: int
    evaluate: EvaluateSection
    report: ReportSection
    cluster: ClusterSettings

    @property
    def l2p_sampling(self) -> dict[str, Any]:
        """Arguments of the trained model's pipeline in its evaluation, but for the size."""
        return {
            "num_inference_steps": self.evaluate.num_inference_steps,
            "guidance_scale": self.evaluate.guidance_scale,
            "noise_shift": self.evaluate.noise_shift,
            "max_sequence_length": self.source.max_sequence_length,
        }

    def to_tables(self) -> dict[str, dict[str, Any]]:
        """Return the resolved config as TOML tables, every default written out."""
        return self._tables(to_table)

    def identity_tables(self) -> dict[str, dict[str, Any]]:
        """As `to_tables`, without the keys that a version added later and that are at their defaults."""
        return self._tables(identity_table)

    def _tables(self, to_table: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
        tables = {name: to_table(getattr(self, name)) for name in TABLES}
        train = {key: value for key, value in tables["train"].items() if key not in (*_RUN_PATHS, *_SHARED)}
        tables["train"] = {"processes": self.processes or "auto", **train}
        return tables


TABLES = {
    "run": RunSection,
    "source": SourceSection,
    "prompts": PromptSettings,
    "filter": FilterRules,
    "images": ImageSettings,
    "surgery": SurgerySettings,
    "train": TrainConfig,
    "evaluate": EvaluateSection,
    "report": ReportSection,
    "cluster": ClusterSettings,
}
_RUN_PATHS = ("model", "corpus", "output", "mirror")  # of TrainConfig: the run decides them
_SHARED = ("seed", "max_sequence_length")  # of TrainConfig: taken from [run] and [source]


def default_tables() -> dict[str, dict[str, Any]]:
    """Return what a config means that leaves everything out that it may."""
    return {name: defaults_of(kind) for name, kind in TABLES.items()} | {
        "train": {"processes": "auto", **defaults_of(TrainConfig)}
    }


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file strictly.

    Args:
        overrides: "table.key=value" with a TOML value; bare text is taken as a string.

    Raises:
        TransferError: no such file, no TOML, an unknown key, a wrong type, a missing key.
    """
    with raised_as(TransferError):
        tables = read_toml(path, "the shipped ones are in configs/, for example configs/mini.toml")
        check_kind(tables, path)
        check_keys(tables, TABLES)
        tables = {name: table_of(tables, name) for name in tables}
        _check_output(tables, overrides)
        base, here = path.absolute().parent, Path.cwd()
        if "output" in tables.get("run", {}):
            tables["run"]["output"] = _absolute(tables["run"]["output"], "run.output", here)
        for text in overrides:
            override(tables, text, TABLES, here)
        return _build(tables, base)


def _build(tables: dict[str, dict[str, Any]], base: Path) -> Config:
    for name in ("run", "source", "evaluate"):
        if name not in tables:
            raise TransferError(f"table [{name}] is missing; compare configs/mini.toml")
    sections: dict[str, Any] = {
        name: read_table(kind, tables.get(name, {}), name, base)
        for name, kind in TABLES.items()
        if kind is not TrainConfig
    }
    run: RunSection = sections["run"]
    train = dict(tables.get("train", {}))
    processes = convert(train.pop("processes", "auto"), int | Literal["auto"], "train.processes", base)
    if processes != "auto" and not 1 <= processes <= MOST_PROCESSES:
        raise TransferError(f'train.processes is {processes}; it must be 1 to {MOST_PROCESSES:,}, or "auto"')
    processes = 0 if processes == "auto" else processes
    for key in (*_RUN_PATHS, *_SHARED):
        if key in train:
            raise TransferError(
                f"train.{key} cannot be set; it follows from [run], [source] and the run directory"
            )
    for key in ("corpus_cache", "perceptual_features"):
        if key in train:
            train[key] = _absolute(train[key], f"train.{key}", base)
    paths = {
        "model": str(run.output / "initial"),
        "corpus": str(run.output / "corpus"),
        "output": str(run.output / "train"),
    }
    check_storage(run.storage)
    if run.storage:
        paths |= {"corpus": f"{run.storage}/corpus", "mirror": f"{run.storage}/train"}
    shared = {"seed": run.seed, "max_sequence_length": sections["source"].max_sequence_length}
    settings = config_from_mapping({**train, **paths, **shared}, source="train")
    if settings.distils:
        raise TransferError(
            f"train.{settings.distils} imitates a model that can already paint, and a transfer begins with "
            "one that cannot; finish the transfer, then run l2p-train distill on it (docs/few-passes.md)"
        )
    config = Config(train=settings, processes=processes, **sections)
    check_config(config)
    return config


def resolve_processes(config: Config) -> int:
    """Training processes: as configured, or one per GPU; on a CPU as many as divide the batch, 8 at most."""
    if config.processes:
        return config.processes
    import torch
    from l2p_train.machine.processes import processes_for

    return processes_for(config.train.batch_size, torch.cuda.device_count() or min(usable_cores(), 8))


def _check_output(tables: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> None:
    given = [text.partition("=")[2].strip(" \"'") for text in overrides if text.startswith("run.output=")]
    for value in (tables.get("run", {}).get("output"), *given):
        if isinstance(value, str) and is_address(value):
            raise TransferError(
                f"run.output is the address {cut(value)}; it must be a local path "
                "(run.storage takes an address)"
            )


def _absolute(value: Any, where: str, base: Path) -> str:
    return str(convert(value, Path, where, base))
