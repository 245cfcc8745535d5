"""`Config`: one TOML file per ablation; what its arms share, and what each of them changes.

`extends` names a file whose tables this one completes or overrides, key by key. Relative paths start from the
directory of the file that was given.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from l2p_train.config import TrainConfig, config_from_mapping
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from l2p_ablate.errors import AblateError

METRICS = {"geneval": True, "frechet": False, "loss": False}
"""Every metric of an arm, and whether more is better."""
MetricName = Literal["geneval", "frechet", "loss"]


def _from_base(value: Any, info: ValidationInfo) -> Any:
    return (
        info.context["base"] / Path(value).expanduser() if info.context and isinstance(value, str) else value
    )


Location = Annotated[Path, BeforeValidator(_from_base)]
Count = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class AblationTable(_Table):
    """What is asked, and how much it may cost."""

    title: str
    paper: str  # "Fig. 9b"
    claim: str  # the paper's, in a sentence
    metric: MetricName = "geneval"  # what the verdict rests on
    seeds: tuple[int, ...] = (0, 1, 2)  # of new weights, order of the data, and noise; the data are the same
    budget_minutes: Annotated[float, Field(gt=0)] = 40.0


class SourceTable(_Table):
    """The latent model that every arm starts from."""

    model: Location
    num_inference_steps: Count = 10
    guidance_scale: float = 2.0
    max_sequence_length: Count = 32


class DataTable(_Table):
    """A corpus, made once for all arms that name it. Corpora of one grammar are nested: a smaller one is the
    beginning of a larger one."""

    kind: Literal["model", "scenes"] = "model"  # painted by a model, or rendered by the miniature's world
    model: Location | None = None  # for kind = "model": the source unless given
    grammar: Location
    prompts: Count = 400
    images_per_prompt: Count = 2
    hue_degrees: float = 0.0  # scenes only: another house style, every hue turned by this
    blur: float = 0.0  # scenes only: radius of a Gaussian, px at 64 px


class SurgeryTable(_Table):
    """Sec. 3.3: what `l2p_arch.convert` takes."""

    patch_size: Count = 16
    head_channels: tuple[Count, ...] = (16, 32, 64, 128)
    initialisation: str = "fitted+detail"
    trunk: Literal["inherited", "random"] = "inherited"  # random: from scratch


class SamplingTable(_Table):
    """How an arm's model samples for its evaluation."""

    num_inference_steps: Count = 16
    guidance_scale: float = 1.5
    noise_shift: Annotated[float, Field(gt=0)] = 3.0


class EvaluateTable(_Table):
    """Held-out prompts, one image each, and what they are held against."""

    metadata: Location
    prompts_per_tag: Count = 20
    reference: Literal["source", "scenes"] = "source"  # of the Frechet distance and the held-out loss
    batch_size: Count = 32
    seed: int = 42


class ArmTable(_Table):
    """One bar of the chart: the shared tables with some keys changed."""

    name: str
    label: str = ""  # on the chart; the name by default
    data: str | None = None
    surgery: dict[str, Any] = {}
    train: dict[str, Any] = {}
    sampling: dict[str, Any] = {}


class ClaimTable(_Table):
    """One comparison that the paper makes, to be tried on the metric."""

    better: str
    worse: str
    kind: Literal["better", "no worse"] = "better"
    margin: float = 0.0  # "no worse": by how much it may be worse, in the metric's units


class Config(_Table):
    """A whole ablation."""

    ablation: AblationTable
    source: SourceTable
    size: Count = 64  # px, of every image
    data: dict[str, DataTable]
    default_data: str = "source"
    surgery: SurgeryTable = SurgeryTable()
    train: dict[str, Any]
    sampling: SamplingTable = SamplingTable()
    evaluate: EvaluateTable
    arm: tuple[ArmTable, ...]
    claim: tuple[ClaimTable, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [arm.name for arm in self.arm]
        if len(names) < 2 or len(set(names)) != len(names):
            raise ValueError(
                f"arm: {len(names)} arms; an ablation compares two or more with names of their own"
            )
        for name in names:
            if not name.replace("-", "").replace(".", "").replace("+", "").isalnum():
                raise ValueError(f"arm: the name {name!r} becomes a folder; use letters, digits, - + and .")
        for arm in self.arm:
            if self.data_of(arm) not in self.data:
                raise ValueError(
                    f"arm {arm.name}: no [data.{self.data_of(arm)}]; there is {', '.join(self.data)}"
                )
            self.surgery_of(arm), self.sampling_of(arm)
        for claim in self.claim:
            for name in (claim.better, claim.worse):
                if name not in names:
                    raise ValueError(f"claim: no arm {name!r}; there is {', '.join(names)}")
        return self

    def data_of(self, arm: ArmTable) -> str:
        return arm.data or self.default_data

    def surgery_of(self, arm: ArmTable) -> SurgeryTable:
        return SurgeryTable.model_validate(_merged(self.surgery.model_dump(), arm.surgery))

    def sampling_of(self, arm: ArmTable) -> SamplingTable:
        return SamplingTable.model_validate(_merged(self.sampling.model_dump(), arm.sampling))

    def train_config(
        self, arm: ArmTable, *, seed: int, model: Path, corpus: Path, output: Path
    ) -> TrainConfig:
        """The trainer's settings of one run; `TrainError` names a bad key."""
        tables = {**self.train, **arm.train}
        tables.pop("processes", None)
        paths = {"model": model, "corpus": corpus, "output": output}
        shared = {"seed": seed, "max_sequence_length": self.source.max_sequence_length}
        return config_from_mapping({**tables, **paths, **shared}, source=f"arm {arm.name}: train")


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads an ablation strictly.

    Args:
        overrides: tables that win over the file's, for example {"ablation": {"seeds": [0]}}.

    Raises:
        AblateError: no such file, no TOML, an unknown key, a wrong type, an arm or corpus that is not there.
    """
    tables = _merged(_read(path, set()), overrides or {})
    if "title" not in tables.get("ablation", {}):
        raise AblateError(
            f"{path} is no ablation: it has no [ablation] table with a title; base.toml is for the others to "
            "extend, and configs of transfers are for l2p-transfer"
        )
    try:
        config = Config.model_validate(_tuples(tables), context={"base": path.absolute().parent})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("value_error", "missing") else f" (given: {first['input']!r})"
        raise AblateError(f"{path}: {where + ': ' if where else ''}{message}{given}") from None
    for arm in config.arm:  # the trainer checks its own table, before hours are spent
        config.train_config(arm, seed=0, model=Path("m"), corpus=Path("c"), output=Path("o"))
    return config


def _read(path: Path, seen: set[Path]) -> dict[str, Any]:
    path = path.absolute()
    if not path.is_file():
        raise AblateError(f"no config file {path}; the shipped ones are in configs/ablations/")
    if path in seen:
        raise AblateError(f"{path} extends itself")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AblateError(f"{path} is not valid TOML: {error}") from None
    if base := tables.pop("extends", None):
        return _merged(_read(path.parent / str(base), seen | {path}), tables)
    return tables


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `change`, table by table."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _tuples(value: Any) -> Any:
    """TOML's arrays as tuples, which strict validation wants."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
