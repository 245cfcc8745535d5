"""`Config`: one TOML file that says everything about a transfer, table by table in the order of the stages.

Relative paths start from the directory of the file they stand in; `run.output` and paths given with `--set`
start from the working directory.
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from l2p_data.filters.filtering import FilterRules
from l2p_train.config import TrainConfig, config_from_mapping

from l2p_transfer.errors import TransferError
from l2p_transfer.schema import check_keys, convert, read_table, to_table
from l2p_transfer.validation import check_config, check_kind, check_storage

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where the run lives. Every file of the run is below `output`, or, with `storage`, also there."""

    output: Path
    storage: str | None = None  # an address such as s3://bucket/run: the corpus, and a copy of all else
    seed: int = 0  # of prompts, new weights and training; image seeds derive from the prompts


@dataclass(frozen=True, kw_only=True)
class SourceSection:
    """The latent model that is transferred, and how it samples (sec. 4.1: Z-Image-Turbo)."""

    model: Path  # a diffusers text-to-image directory
    num_inference_steps: int = 9
    guidance_scale: float = 0.0
    max_sequence_length: int | None = None  # tokens of a prompt; None: its pipeline's default
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
class PromptsSection:
    """Where prompts come from (sec. 3.2; the paper: 10k)."""

    engine: Literal["grammar", "file", "openai", "vllm"] = "grammar"
    grammar: Path | None = None  # for engine = "grammar": a grammar file
    file: Path | None = None  # for engine = "file": .jsonl, .txt, .csv or .parquet; dropped ones are left out
    server: str | None = None  # for engine = "openai": base URL; the key comes from OPENAI_API_KEY
    model: str | None = None  # for engine = "openai": the server's model
    llm: Path | None = None  # for engine = "vllm": a transformers directory of a language model
    tensor_parallel: int = 1  # for engine = "vllm": GPUs per replica
    replicas: int | None = None  # for engine = "vllm"; None: as many as the GPUs hold
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for engine = "vllm": what vllm.LLM takes
    taxonomy: Path | None = None  # for an LLM: your own categories, merged onto the shipped tree
    kind: Literal["simple", "detailed", "mixed"] = "mixed"  # for an LLM: Fig. 10
    subjects_per_message: int = 1  # for an LLM
    audit: bool = False  # the LLM also judges what passed the rules (Fig. 11)
    count: int = 10_000  # prompts to write; with a file, the most to take


@dataclass(frozen=True, kw_only=True)
class ImagesSection:
    """The corpus that the source paints (sec. 3.2; the paper: 2 seeds a prompt, 1024 px)."""

    seeds_per_prompt: int = 2
    width: int = 1024  # px
    height: int = 1024  # px
    buckets: tuple[str, ...] | None = None  # instead: "1152x896" and so on, each image gets one of them
    batch_size: int = 8
    cpu_offload: bool = False  # text encoder, transformer, VAE are on the GPU by turns: slower, less memory
    rows_per_shard: int = 64
    workers: int | None = (
        None  # None: one per GPU, or as many as the CPUs hold; 0: without Ray, in this process
    )


@dataclass(frozen=True, kw_only=True)
class SurgerySection:
    """From the source's transformer to the pixel-space initialisation (sec. 3.3, Table 3)."""

    recipe: Literal["paper", "aligned"] = "paper"  # aligned: keeps the source's last layer, predicts x_0
    decoder: str = "auto"  # aligned only: low-rank, least-squares, neighbours, filters or closed-form
    patch_size: int = 16
    head_channels: tuple[int, ...] = (64, 128, 256, 512)
    initialisation: str = (
        "auto"  # a closed form; "fitted+kaiming+gated" measures the source and learns quicker,
    )
    # but holds the source's transformer in memory, in float32
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: as in the source


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """GenEval of the source and of the L2P model, and a Frechet distance between them (sec. 4)."""

    metadata: Path  # evaluation_metadata.jsonl
    detector: str = "scenes"  # scenes: the miniature's exact one; coco: GenEval's, needs the two models below
    detector_model: Path | None = None  # transformers directory of a Mask2Former (Swin-S, COCO instance)
    color_model: Path | None = None  # transformers directory of a CLIP (ViT-L/14)
    width: int | None = None  # px, with height; None: the size of the training. Also what l2p-generate
    height: int | None = None  # paints by default
    images_per_prompt: int = 4
    num_inference_steps: int = 30
    guidance_scale: float = 2.0
    noise_shift: float | None = None  # None: the model's scheduler decides
    batch_size: int = 16
    cpu_offload: bool = False  # text encoder, transformer, VAE are on the GPU by turns: slower, less memory
    workers: int | None = None  # None: one per GPU or per CPU core; 0: in the command's own process
    seed: int = 42  # of the first image
    dtype: Dtype = "auto"
    features: str = "efficientnet-lite0"  # for the Frechet distance


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """What the report shows."""

    title: str = ""  # heading; the run directory's name by default
    pairs_per_tag: int = 4
    failures: int = 12


@dataclass(frozen=True, kw_only=True)
class ClusterSection:
    """The Ray cluster that images and training run on. Where a run runs does not change what it makes."""

    address: str = ""  # "auto" within a job of the cluster, or HOST:PORT of its head; "": this machine alone
    cpus_per_process: int = 1  # that Ray keeps for each training process; threads of an optimiser on the host
    max_failures: int = 3  # lost nodes that the training survives
    # Custom resources of the nodes that one worker of a stage takes, such as { training = 1 }: where it runs.
    llm_resources: Mapping[str, Any] = field(default_factory=dict)  # each vLLM replica
    synthesis_resources: Mapping[str, Any] = field(default_factory=dict)  # each worker that paints the corpus
    training_resources: Mapping[str, Any] = field(default_factory=dict)  # each training process
    evaluation_resources: Mapping[str, Any] = field(default_factory=dict)  # each worker that paints for it


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole transfer. `train` holds the run's own paths; `processes` is train.processes, 0 for auto."""

    run: RunSection
    source: SourceSection
    prompts: PromptsSection
    filter: FilterRules
    images: ImagesSection
    surgery: SurgerySection
    train: TrainConfig
    processes: int
    evaluate: EvaluateSection
    report: ReportSection
    cluster: ClusterSection

    def to_tables(self) -> dict[str, dict[str, Any]]:
        """The resolved config as TOML tables, every default written out."""
        tables = {name: to_table(getattr(self, name)) for name in TABLES if name != "train"}
        train = {key: value for key, value in self.train.to_dict().items() if value is not None}
        for key in (*_RUN_PATHS, *_SHARED):
            train.pop(key, None)
        tables["train"] = {"processes": self.processes or "auto", **train}
        return {name: tables[name] for name in TABLES}


TABLES = {
    "run": RunSection,
    "source": SourceSection,
    "prompts": PromptsSection,
    "filter": FilterRules,
    "images": ImagesSection,
    "surgery": SurgerySection,
    "train": TrainConfig,
    "evaluate": EvaluateSection,
    "report": ReportSection,
    "cluster": ClusterSection,
}
_RUN_PATHS = ("model", "corpus", "output", "mirror")  # of TrainConfig: the run decides them
_SHARED = ("seed", "max_sequence_length")  # of TrainConfig: taken from [run] and [source]


def default_tables() -> dict[str, dict[str, Any]]:
    """What a config means that leaves everything out that it may."""
    tables: dict[str, dict[str, Any]] = {"train": {"processes": "auto"}}
    for name, kind in TABLES.items():
        values = tables.setdefault(name, {})
        for one in dataclasses.fields(kind):
            if one.default is not dataclasses.MISSING:
                values[one.name] = to_table(one.default)
            elif one.default_factory is not dataclasses.MISSING:
                values[one.name] = to_table(one.default_factory())
    return tables


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file strictly.

    Args:
        overrides: "table.key=value" with a TOML value; bare text is taken as a string.

    Raises:
        TransferError: no such file, no TOML, an unknown key, a wrong type, a missing key.
    """
    if not path.is_file():
        raise TransferError(
            f"no config file {path}; the shipped ones are in configs/, for example configs/mini.toml"
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TransferError(f"{path} is not valid TOML: {error}") from None
    check_kind(tables, path)
    check_keys(tables, TABLES, "")
    base, here = path.absolute().parent, Path.cwd()
    if "output" in tables.get("run", {}):
        tables["run"]["output"] = _absolute(tables["run"]["output"], "run.output", here)
    for override in overrides:
        _override(tables, override, here)
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
    if processes != "auto" and processes < 1:
        raise TransferError(f'train.processes is {processes}; it must be at least 1, or "auto"')
    processes = 0 if processes == "auto" else processes
    for key in (*_RUN_PATHS, *_SHARED):
        if key in train:
            raise TransferError(
                f"train.{key} cannot be set; it follows from [run], [source] and the run directory"
            )
    if "corpus_cache" in train:
        train["corpus_cache"] = _absolute(train["corpus_cache"], "train.corpus_cache", base)
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
    if settings.distil_guidance:
        raise TransferError(
            "train.distil_guidance imitates a model that can already paint, and a transfer begins with one "
            "that cannot; finish the transfer, then give its model to the trainer alone (docs/few-passes.md)"
        )
    config = Config(train=settings, processes=processes, **sections)
    check_config(config)
    return config


def resolve_processes(config: Config) -> int:
    """Training processes: as configured, or one per GPU; on a CPU as many as divide the batch, 8 at most."""
    if config.processes:
        return config.processes
    import torch

    from l2p_transfer.memory import usable_cores

    most = torch.cuda.device_count() or min(usable_cores(), 8)
    return max(count for count in range(1, most + 1) if config.train.batch_size % count == 0)


def _override(tables: dict[str, Any], override: str, here: Path) -> None:
    """Applies one "table.key=value" in place; paths become absolute from `here`."""
    key, separator, text = override.partition("=")
    table, dot, name = key.strip().partition(".")
    if not separator or not dot:
        raise TransferError(
            f"--set {override!r} is not of the form table.key=value, for example train.steps=500"
        )
    check_keys({table: None}, TABLES, "")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    kinds = {f.name: f.type for f in dataclasses.fields(TABLES[table])}
    if "Path" in str(kinds.get(name, "")) and (table, name) != ("train", "corpus"):
        value = _absolute(value, f"{table}.{name}", here)
    tables.setdefault(table, {})[name] = value


def _absolute(value: Any, where: str, base: Path) -> str:
    return str(convert(value, Path, where, base))
