"""`TrainConfig`: every setting of a training run, with the defaults of Table 3, and its strict loading."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from l2p_run.config_file import read_toml
from l2p_run.errors import UserError, raised_as
from l2p_run.places import is_address, read_json
from l2p_run.settings import check_settings, cut, marked, read_table, seed_setting, setting

from l2p_train.config_checks import check_together
from l2p_train.errors import TrainError

# Fields with this mark may differ between a run and its resumption; any other difference is an error.
MAY_CHANGE: dict[str, Any] = {"may_change": True}


def _free(default: Any, **bounds: Any) -> Any:
    """Return a field whose value may change when a run resumes."""
    return setting(default, **bounds, **MAY_CHANGE)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run. Defaults: Table 3, and the released model where the paper is silent."""

    model: Path  # a model directory written by `l2p_arch.convert`
    corpus: Path | str  # Parquet shards (id, prompt, width, height, image, ...): a directory, or an
    # address as text, such as "s3://bucket/corpus"
    output: Path  # the run's directory; running again with the same one resumes
    mirror: str | None = _free(None)  # an address that keeps what another machine needs to go on (mirror.py)
    seed: int = seed_setting()

    # Length. A sample is one image seen once; step s uses samples s * batch_size to (s + 1) * batch_size - 1.
    steps: int = _free(1000, ge=1)  # optimiser steps of the whole run
    batch_size: int = setting(8, ge=1)  # images per optimiser step over ALL processes (Table 3)
    micro_batch_size: int | None = setting(None, ge=1)  # images per process and forward; None: batch_size /
    # processes.
    # Gradient accumulation follows: batch_size / (processes * micro_batch_size) (Table 3: 1).

    # Optimiser
    optimizer: Literal["adamw", "muon"] = "adamw"  # Table 3: adamw; muon.py: quicker, needs zero_stage 0
    muon_momentum: float = setting(0.95, ge=0, lt=1)  # muon only
    learning_rate: float = setting(5e-5, gt=0)  # peak
    new_end_multiplier: float = setting(1.0, ge=0)  # learning rate of the new ends (embedder, head) over the
    # inherited blocks
    betas: tuple[float, float] = setting((0.9, 0.999), ge=0, lt=1)
    eps: float = setting(1e-8, gt=0)
    weight_decay: float = setting(0.01, ge=0)
    gradient_clipping: float = setting(1.0, ge=0)  # global norm; 0: off. The paper names none.
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    warmup_steps: int = setting(0, ge=0)  # linear from 0; for one-cycle the rising part (0: 30 % of the run)
    final_rate: float = setting(0.0, ge=0, le=1)  # learning rate at the end over the peak (cosine, one-cycle)
    ema_decay: float = setting(0.0, ge=0, lt=1)  # 0: off (the paper has none); else samples and the exported
    # model use the average
    ema_warmup: bool = True  # decay_t = min(decay, (1 + t) / (10 + t)): forgets the untrained start sooner

    # Objective: eq. 5
    sigma_distribution: Literal["uniform", "logit-normal", "discrete"] = "uniform"
    noise_shift: float = setting(3.0, gt=0)  # s of sigma' = s * sigma / (1 + (s - 1) * sigma); 3 at 1K, 4
    # at 4K
    logit_mean: float = setting(0.0, ge=-100, le=100)  # logit-normal only: below 0 visits low noise more
    # often
    logit_std: float = setting(1.0, gt=0, le=100)  # logit-normal only
    sigma_points: int = setting(500, ge=1)  # discrete only
    stratified_sigma: bool = False  # spread the sigmas of neighbouring samples evenly; same density
    loss_weighting: Literal["none", "x_0", "cosmap", "error", "step"] = "none"  # eq. 5 has none; error:
    # aligned only; step: with distil_steps, each step by how far it goes
    polish_share: float = setting(0.0, ge=0, lt=1, later=True)  # aligned only: samples that train the
    # first pass over a finished image that takes off grain (noise.py); 0: none
    distil_guidance: float = setting(0.0, later=True)  # above 1: imitate the model that the run starts from,
    # guided so, in one
    # pass instead of two (distillation.py); 0: off
    distil_guidance_range: tuple[float, ...] = field(default=(), metadata={"later": True})  # instead of one
    # guidance the lowest and the highest of those that the student learns to take as a number; (): none
    distil_steps: int = setting(0, ge=0, later=True)  # above 0: one of so many sampling steps does what that
    # model needs distil_substeps for; sigma is then one of these steps, shifted by noise_shift
    distil_substeps: int = setting(2, ge=1, later=True)  # of the teacher in one step of its student
    # On the image that a velocity implies, most at low noise (image_terms.py); 0: off, the paper has none
    perceptual_weight: float = setting(0.0, ge=0, le=1000, later=True)  # of features: 0.1 to 1 is usual
    # Directory of a vision backbone of transformers; None: efficientnet-lite0, l2p-train[perceptual]
    perceptual_features: Path | None = field(default=None, metadata={"later": True})
    frequency_weight: float = setting(0.0, ge=0, le=1000, later=True)  # of Fourier amplitudes: about 0.1
    image_terms_from: float = setting(0.0, ge=0, lt=1, later=True)  # share of steps after which both count
    caption_dropout: float = setting(0.0, ge=0, lt=1)  # probability of the empty prompt (classifier-free
    # guidance); official: none

    # What trains (freeze.py)
    trainable: str | int = setting("shallow", ge=0)  # shallow (5 blocks at each end), mid (10), full,
    # head-only, lora (and the new ends), lora-only, or n
    lora_rank: int = setting(16, ge=1, later=True)  # lora and lora-only: low-rank adapters, of this rank
    lora_alpha: int = setting(16, ge=1, later=True)  # lora and lora-only: an adapter counts alpha / rank
    lora_targets: tuple[str, ...] = field(
        default=("to_q", "to_k", "to_v", "to_out.0"), metadata={"later": True}
    )  # lora and lora-only: ends of the names of the main blocks' linear layers that get one, or patterns
    # over all linear and convolution layers, such as trunk.layers.2.* or detailer_head.*
    train_patterns: tuple[str, ...] = ()  # if given, exactly the tensors matching these (fnmatch) train
    freeze_patterns: tuple[str, ...] = ()  # taken out again

    # Engine
    zero_stage: int = 2  # DeepSpeed ZeRO 0 to 3; 0 is quickest on a CPU, and accumulates gradients in bf16;
    # 1 keeps float32 gradients of all that trains, 2 a share of them; 3 shares the weights too
    precision: Literal["bf16", "fp32"] = "bf16"  # bf16: float32 masters of what trains, and only of that
    gradient_checkpointing: bool = False  # recompute each block: about 1/10 of the activations, 1/3 more time
    head_tile: int = setting(0, ge=0)  # px; > 0: the Detailer Head runs in tiles of this side (4K: 1024 with
    # checkpointing)
    offload_optimizer: bool = False  # ZeRO >= 1: masters and Adam moments in host memory
    frozen_weights: Literal["as-is", "int8"] = "as-is"  # int8: wholly frozen blocks in 8 bit while training
    compile: bool | Literal["auto"] = (
        False  # torch.compile each block; "auto": where a C++ compiler is at hand
    )

    # Data
    max_sequence_length: int | None = setting(None, ge=1)  # longest text, in tokens; None: as the family's
    # own
    resolution: int | None = setting(None, ge=1)  # None: images as they are; r: about r x r pixels, aspect
    # kept, no crop
    loader_workers: int = _free(2, ge=0)  # threads that decode images; 0: in the training thread
    image_cache_mb: int = _free(1024, ge=0)  # decoded images kept in memory, per process
    # Of a corpus at an address, images kept on disk: where (None: in `output`), and how much, per machine
    corpus_cache: Path | None = field(default=None, metadata=MAY_CHANGE)
    corpus_cache_gb: float = _free(100.0, ge=0)
    validation_images: int = setting(0, ge=0)  # held out (whole prompts): eq. 5 at fixed noise tells which
    # checkpoint is best

    # What is written, and when (steps; 0: never). The last step always writes a checkpoint and the model.
    log_every: int = _free(10, ge=1)
    checkpoint_every: int = _free(500, ge=0)
    keep_checkpoints: int = _free(2, ge=0)  # the newest; with validation_images the best one stays too
    validate_every: int = _free(0, ge=0)  # besides every checkpoint
    export: Literal["last", "best"] = _free("last")  # which checkpoint becomes the model
    sample_every: int = _free(500, ge=0)
    sample_prompts: tuple[str, ...] = _free(())  # (): prompts of the corpus, beside their source images
    sample_count: int = _free(8, ge=0)  # how many prompts of the corpus
    sample_steps: int = _free(30, ge=1)
    sample_guidance: float = _free(2.0)
    sample_seed: int = seed_setting(42, **MAY_CHANGE)
    tensorboard: bool = _free(True)
    trackers: tuple[Literal["wandb", "trackio"], ...] = _free(())  # l2p-train[wandb], l2p-train[trackio]
    tracker_project: str = _free("l2p")
    peak_tflops: float | None = _free(None, gt=0)  # of one device, for mfu in the log; None: known GPUs in
    # bf16

    def __post_init__(self) -> None:
        """Raise `TrainError` for values that no run can have."""
        with raised_as(TrainError):
            check_settings(self)
        check_together(self)

    @property
    def adapts(self) -> bool:
        """Whether low-rank adapters are added to the model."""
        return self.trainable in ("lora", "lora-only")

    @property
    def distils(self) -> str:
        """By which setting the run imitates the model that it starts from; empty: it does not."""
        names = ("distil_guidance", "distil_guidance_range", "distil_steps")
        return next((name for name in names if getattr(self, name)), "")

    def check_guidance(self, learned: tuple[float, float] | None) -> None:
        """Refuse what cannot be learned from, or sampled by, a model that takes its guidance as a number.

        Args:
            learned: the scales that the model takes before the run, None where it takes none.

        Raises:
            TrainError: it is to learn guidance a second time, or `sample_guidance` lies outside.
        """
        if learned and (self.distil_guidance or self.distil_guidance_range):
            raise TrainError(
                f"{self.distils} teaches guidance, and this model takes it as a number already, from "
                f"{learned[0]:g} to {learned[1]:g}; leave it out (distil_steps keeps the number)"
            )
        lowest, highest = learned or self.distil_guidance_range or (0.0, 0.0)
        if highest and self.sample_every and not lowest <= max(self.sample_guidance, 1.0) <= highest:
            raise TrainError(
                f"sample_guidance is {self.sample_guidance:g}, and the model takes a guidance from "
                f"{lowest:g} to {highest:g}; set one of these"
            )

    def check_recipe(self, *, aligned: bool, polishes: bool) -> None:
        """Refuse what a model of another recipe of the surgery cannot have.

        Args:
            aligned: whether the model has the closed form of the recipe "aligned".
            polishes: whether its pipeline denoises a finished image once more (`L2PTransformer.polish`).

        Raises:
            TrainError: `loss_weighting` "error" without the one, or `polish_share` without the other.
        """
        if self.loss_weighting == "error" and not aligned:
            raise TrainError(
                'loss_weighting is "error", which weighs by the closed form of the recipe "aligned", and '
                'this model is of another; set it to "none"'
            )
        if self.polish_share and not polishes:
            raise TrainError(
                f"polish_share is {self.polish_share}, and this model takes no grain off a finished image, "
                'as those of the recipe "aligned" do unless their polish is empty; set it to 0'
            )

    def batch_layout(self, processes: int) -> tuple[int, int]:
        """Return (micro batch size, accumulation steps) for a number of processes, or raise `TrainError`."""
        if self.batch_size % processes:
            micro = self.micro_batch_size or 1
            fitting = _divisors(self.batch_size // micro) if self.batch_size % micro == 0 else []
            ways = [f"{_one_of(fitting)} process{'es' if fitting != [1] else ''}"] if fitting else []
            whole = processes * micro  # images of a step without accumulation
            below = self.batch_size // whole * whole
            near = [size for size in (below, below + whole) if size]
            raise TrainError(
                f"batch_size {self.batch_size} does not divide over {processes} processes; "
                f"use {', or '.join([*ways, f'a batch_size of {_one_of(near)}'])}"
            )
        per_process = self.batch_size // processes
        micro = self.micro_batch_size or per_process
        if per_process % micro:
            raise TrainError(
                f"micro_batch_size {micro} does not divide the {per_process} images of each process "
                f"(batch_size {self.batch_size} over {processes} processes); "
                f"use {_one_of(_divisors(per_process))}"
            )
        return micro, per_process // micro

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        plain = dataclasses.asdict(self)
        return {
            k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
            for k, v in plain.items()
        }


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _one_of(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def changeable() -> set[str]:
    """Return the names of the settings that may differ between a run and its resumption."""
    return marked(TrainConfig, "may_change")


def differences(old: Mapping[str, Any], new: TrainConfig) -> list[str]:
    """Return lines 'key: old -> new' for settings that differ and may not change when a run resumes."""
    now = new.to_dict()
    # Paths may be moved or spelled otherwise; the model and corpus are checked by content, not by name.
    free = changeable() | {"model", "corpus", "output"}
    fixed = [each.name for each in dataclasses.fields(new) if each.name not in free]
    places: dict[str, Any] = {"model": Path("model"), "corpus": "corpus", "output": Path("output")}
    usual = TrainConfig(**places).to_dict()  # what an earlier version did not know has its default
    before = {name: old.get(name, usual.get(name)) for name in fixed}
    return [f"{name}: {before[name]} -> {now[name]}" for name in fixed if before[name] != now[name]]


def config_from_mapping(values: Mapping[str, Any], source: str = "train") -> TrainConfig:
    """Return a `TrainConfig` from plain values (TOML or JSON), strictly.

    Raises:
        TrainError: an unknown key (with the nearest known one), a missing key, or a value of the wrong type.
    """
    if "processes" in values:
        raise TrainError(
            f"{source}: unknown key 'processes', which is l2p-transfer's; leave it out and start the "
            "processes with torchrun"
        )
    given = {key: value for key, value in values.items() if value is not None}  # JSON has null for None
    for name in ("model", "output"):
        if isinstance(given.get(name), str) and is_address(given[name]):
            raise TrainError(
                f"{source}.{name}: got the address {given[name]!r}, wanted a local path; mirror takes one"
            )
    try:
        return read_table(TrainConfig, given, "")
    except UserError as error:
        # They begin with the setting's name; a table's stands before it, and a file's apart.
        named = str(error).split(" ", 1)[0].partition("[")[0] in TrainConfig.__dataclass_fields__
        raise TrainError(f"{source}{'.' if source == 'train' and named else ': '}{error}") from None


def load_config(path: str | Path) -> TrainConfig:
    """Return the config of a .toml or .json file; a `[train]` table is used when there is one.

    Raises:
        TrainError: it is missing, unreadable, or not what `config_from_mapping` takes.
    """
    path = Path(path)
    with raised_as(TrainError):
        values = read_json(path) if path.suffix == ".json" else read_toml(path)
        if isinstance(values, dict) and isinstance(values.get("train"), dict):
            values = values["train"]
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold a table of settings; this is {cut(values)}")
    return config_from_mapping(values, source=str(path))
