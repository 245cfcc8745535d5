"""`Config`: one TOML file per ablation; what its arms share, and what each of them changes.

`extends` names a file whose tables this one completes or overrides, key by key. Relative paths start from the
directory of the file that was given.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from l2p_eval.report.arms import Claim
from l2p_run.config_file import merged, read_extended
from l2p_run.errors import UserError, raised_as
from l2p_run.settings import LARGEST_SEED, cut, read_table, seed_setting, setting, to_table
from l2p_train.config import TrainConfig, config_from_mapping
from l2p_train.run.surgery import SurgerySettings

from l2p_ablate.errors import AblateError

MetricName = Literal["geneval", "frechet", "loss", "loss-seen", "patch-grid"]
LARGEST_SIDE, LARGEST_COUNT = 1 << 16, 10**7
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AblationTable:
    """What is asked, and how much it may cost."""

    title: str
    paper: str  # "Fig. 9b"
    claim: str  # the paper's, in a sentence
    metric: MetricName = "geneval"  # what the verdict rests on
    # Of new weights, order of the data, and noise; the data are the same.
    seeds: tuple[int, ...] = setting((0, 1, 2), ge=0, le=LARGEST_SEED)
    budget_minutes: float = setting(40.0, gt=0)


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """The latent model that every arm starts from."""

    model: Path
    num_inference_steps: int = setting(10, ge=1, le=10_000)
    guidance_scale: float = setting(2.0, ge=0, le=1000)
    max_sequence_length: int = setting(32, ge=1, le=1 << 20)


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A corpus, made once for all arms that name it. Corpora of one grammar are nested: a smaller one is the
    beginning of a larger one."""

    kind: Literal["model", "scenes"] = "model"  # painted by a model, or rendered by the miniature's world
    model: Path | None = None  # for kind = "model": the source unless given
    grammar: Path
    prompts: int = setting(400, ge=1, le=LARGEST_COUNT)
    images_per_prompt: int = setting(2, ge=1, le=LARGEST_COUNT)
    hue_degrees: float = setting(0.0, ge=-360, le=360)  # scenes only: another house style, every hue turned
    blur: float = setting(0.0, ge=0, le=64)  # scenes only: radius of a Gaussian, px at 64 px


@dataclass(frozen=True, kw_only=True)
class SurgeryTable(SurgerySettings):
    """Sec. 3.3, with the miniature's defaults."""

    head_channels: tuple[int, ...] = setting((16, 32, 64, 128), ge=1, le=LARGEST_SIDE)
    initialisation: str = "fitted+detail"
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(None, later=True)
    trunk: Literal["inherited", "random"] = "inherited"  # random: from scratch
    # A trained pixel model of a smaller patch: it is enlarged (sec. 3.4), and its own recipe stays.
    base: Path | None = setting(None, later=True)  # noqa: RUF009 (it makes a field)


@dataclass(frozen=True, kw_only=True)
class SamplingTable:
    """How an arm's model samples for its evaluation."""

    num_inference_steps: int = setting(16, ge=1, le=10_000)
    guidance_scale: float = setting(1.5, ge=0, le=1000)
    noise_shift: float = setting(3.0, gt=0, le=1000)


@dataclass(frozen=True, kw_only=True)
class EvaluateTable:
    """Held-out prompts, one image each, and what they are held against."""

    metadata: Path
    prompts_per_tag: int = setting(20, ge=1, le=LARGEST_COUNT)
    reference: Literal["source", "scenes"] = "source"  # of the Frechet distance and the held-out loss
    batch_size: int = setting(32, ge=1, le=LARGEST_COUNT)
    seed: int = seed_setting(42)


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One bar of the chart: the shared tables with some keys changed."""

    name: str
    label: str = ""  # on the chart; the name by default
    data: str | None = None
    surgery: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole ablation."""

    ablation: AblationTable
    source: SourceTable
    size: int = setting(64, ge=1, le=LARGEST_SIDE)  # px, of every image
    data: dict[str, DataTable]
    default_data: str = "source"
    surgery: SurgeryTable = field(default_factory=SurgeryTable)
    train: dict[str, Any]
    sampling: SamplingTable = field(default_factory=SamplingTable)
    evaluate: EvaluateTable
    arm: tuple[ArmTable, ...]
    claim: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        seeds, names = self.ablation.seeds, [arm.name for arm in self.arm]
        if not seeds or len(set(seeds)) != len(seeds):
            raise UserError(f"ablation.seeds is {list(seeds)}; give one or more, each once")
        if len(names) < 2 or len(set(names)) != len(names):
            raise UserError(
                f"arm: {len(names)} arms; an ablation compares two or more with names of their own"
            )
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9+.-]*[A-Za-z0-9][A-Za-z0-9+.-]*", name):
                raise UserError(f"arm: the name {cut(name)} becomes a folder; use letters, digits, - + and .")
        for arm in self.arm:
            if self.data_of(arm) not in self.data:
                raise UserError(
                    f"arm {arm.name}: no [data.{self.data_of(arm)}]; there is {', '.join(self.data)}"
                )
            self.surgery_of(arm), self.sampling_of(arm)
            # The trainer checks its own table, before hours are spent.
            for number in (min(seeds), max(seeds)):
                self.train_config(arm, seed=number, model=Path("m"), corpus=Path("c"), output=Path("o"))
        for claim in self.claim:
            for name in (claim.better, claim.worse):
                if name not in names:
                    raise UserError(f"claim: no arm {name!r}; there is {', '.join(names)}")

    @property
    def labels(self) -> dict[str, str]:
        """Arm -> what charts call it."""
        return {arm.name: arm.label or arm.name for arm in self.arm}

    def data_of(self, arm: ArmTable) -> str:
        """Name of the corpus that an arm trains on."""
        return arm.data or self.default_data

    def surgery_of(self, arm: ArmTable) -> SurgeryTable:
        """Return how an arm's model is made."""
        return _changed(self.surgery, arm.surgery, f"arm {arm.name}: surgery")

    def sampling_of(self, arm: ArmTable) -> SamplingTable:
        """Return how an arm's model samples."""
        return _changed(self.sampling, arm.sampling, f"arm {arm.name}: sampling")

    def train_config(
        self, arm: ArmTable, *, seed: int, model: Path, corpus: Path, output: Path
    ) -> TrainConfig:
        """Return the trainer's settings of one run; `TrainError` names a bad key."""
        tables = {**self.train, **arm.train}
        tables.pop("processes", None)
        paths = {"model": model, "corpus": corpus, "output": output}
        shared = {"seed": seed, "max_sequence_length": self.source.max_sequence_length}
        return config_from_mapping({**tables, **paths, **shared}, source=f"arm {arm.name}: train")


def _changed(table: T, change: Mapping[str, Any], where: str) -> T:
    return read_table(type(table), {**to_table(table), **change}, where)


@raised_as(AblateError)
def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read an ablation strictly.

    Args:
        overrides: tables that win over the file's, for example {"ablation": {"seeds": [0]}}.

    Raises:
        AblateError: no such file, no TOML, an unknown key, a wrong type, a number out of range, an arm or
            corpus that is not there.
    """
    tables = read_extended(path.absolute(), "the shipped ones are in configs/ablations/")
    own = tables.get("ablation", {})
    if not isinstance(own, Mapping) or "title" not in own:
        raise AblateError(
            f"{path} is no ablation: it has no [ablation] table with a title; base.toml is for the others to "
            "extend, and configs of transfers are for l2p-transfer"
        )
    try:
        return read_table(Config, merged(tables, overrides or {}), "", path.absolute().parent)
    except UserError as error:
        raise AblateError(f"{path}: {error}") from error
