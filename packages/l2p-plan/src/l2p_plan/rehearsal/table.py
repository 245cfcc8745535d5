"""What a rehearsal measured beside what was planned for it, and what follows for the whole run."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from l2p_arch.files.part_sizes import TRANSFORMER, of_directory
from l2p_run.places import shorten
from l2p_run.usage import memory_of_machine
from l2p_train.config import TrainConfig

from l2p_plan.costs import GENEVAL_PROMPTS
from l2p_plan.model import ModelPlan
from l2p_plan.transfer import Source

HOST = "memory of a process, host"
CONTENT = ("corpus", "text embeddings")  # as large as the pictures and prompts make it, and these are noise
NOT_COMPARED = (HOST, *CONTENT)  # HOST: planned for a GPU; a process on a CPU also holds 1 GB of libraries
JUDGES_BYTES = 2 * 10**9
TOLERANCE = 0.1  # of the plan, beyond which a row is marked
REMEDIES = {
    "images": "images.cpu_offload = true, or a smaller images.batch_size",
    "training": "train.gradient_checkpointing = true, train.head_tile, a smaller train.micro_batch_size,"
    " a higher train.zero_stage, or train.offload_optimizer = true",
    "evaluation": "evaluate.cpu_offload = true, or a smaller evaluate.batch_size",
    "disk": "a run.output with more room, or a smaller train.keep_checkpoints",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A quantity: as planned for the rehearsal, as measured, and what it means for the whole run."""

    stage: str
    what: str
    unit: str
    planned: float | None
    measured: float | None
    whole: float | None = None

    @property
    def off(self) -> bool:
        """Whether the plan was wrong by more than `TOLERANCE`."""
        if not self.planned or not self.measured or self.what in NOT_COMPARED:
            return False
        return abs(self.measured / self.planned - 1) > TOLERANCE

    def text(self) -> str:
        """Return a line of the table."""
        values = "".join(f"{_number(value):>12}" for value in (self.planned, self.measured, self.whole))
        return f"  {self.stage:11} {self.what:30}{values}  {self.unit}{'  *' if self.off else ''}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """The result of a rehearsal."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    resumed_alike: bool

    def to_row(self) -> dict[str, Any]:
        """Return JSON values, for --json."""
        return {
            "rows": [asdict(row) | {"off": row.off} for row in self.rows],
            "problems": list(self.problems),
            "resumed_alike": self.resumed_alike,
        }

    def text(self) -> str:
        """Return text for people."""
        head = f"  {'stage':11} {'':30}{'planned':>12}{'measured':>12}{'whole run':>12}"
        lines = [head, *(row.text() for row in self.rows)]
        if any(row.off for row in self.rows):
            lines.append("  * the plan is off by more than 10 %")
        lines.append(
            "  resuming gave the same weights"
            if self.resumed_alike
            else "  RESUMING GAVE OTHER WEIGHTS; please report it with this config"
        )
        return "\n".join([*lines, *(f"  would not fit: {problem}" for problem in self.problems)])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a rehearsal left.

    Attributes:
        stages: (name, marker, notes) of each stage in order; notes may have "device_bytes", "rate" (images a
            second) and "step_seconds".
        disk: bytes of what the plan counts.
        evaluation_prompts: how many were evaluated.
        resumed_alike: whether a resumed training gave the same weights.
    """

    stages: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
    disk: Mapping[str, int]
    evaluation_prompts: int
    resumed_alike: bool


def planned_disk(source: Source, *, depth: int | None, judges: bool) -> float:
    """Return bytes that a rehearsal will write at most: counted, before anything is.

    Args:
        depth: blocks of each kind, at most.
        judges: whether it writes GenEval's two models, too.
    """
    from l2p_arch.families.published_pipelines import recipe
    from l2p_arch.surgery.random_source import build_on_meta

    if source.directory.is_dir():
        found = of_directory(source.directory)
        transformer = found.parts[TRANSFORMER].stored_bytes
        parameters, whole = found.parts[TRANSFORMER].parameters, found.disk_bytes
    else:
        counts = {
            name: (sum(one.numel() for one in build_on_meta(part, depth).parameters()), part.dtype)
            for name, part in recipe(source.family).components.items()
        }
        sizes = {name: count * dtype.itemsize for name, (count, dtype) in counts.items()}
        parameters, transformer, whole = counts[TRANSFORMER][0], sizes[TRANSFORMER], sum(sizes.values())
    # The source, the initial and the final model (which shares the source's other parts), the judges, and two
    # checkpoints of float32 masters and moments, if everything trained.
    return whole + transformer + whole + (JUDGES_BYTES if judges else 0) + 2 * 12 * parameters


def make_table(
    little: ModelPlan, whole: ModelPlan, measured: Measured, *, train: TrainConfig, output: Path
) -> Table:
    """Lay what was measured beside the plans of the rehearsal and of the whole run.

    Args:
        train: the whole run's.
        output: folder of the whole run, whose disk it will fill.
    """
    flop = dict(little.costs.flop)
    if "evaluation" in flop:
        flop["evaluation"] *= measured.evaluation_prompts / GENEVAL_PROMPTS
    rows = [*_disk_rows(little, whole, train, measured.disk)]
    for name, marker, noted in measured.stages:
        rows += _stage_rows(name, marker, noted, little, whole, flop)
    return Table(
        rows=tuple(rows),
        problems=tuple(_problems(train, output, whole.processes, rows)),
        resumed_alike=measured.resumed_alike,
    )


def _disk_rows(
    little: ModelPlan, whole: ModelPlan, train: TrainConfig, disk: Mapping[str, int]
) -> Iterator[Row]:
    planned, full = dict(little.costs.disk_gb), dict(whole.costs.disk_gb)
    kept = train.keep_checkpoints + 1 + bool(train.validation_images)
    planned["a checkpoint"] = planned.pop("checkpoints") / (3 + bool(train.validation_images))
    full["a checkpoint"] = full.pop("checkpoints") / kept
    for name, size in disk.items():
        ratio = size / 1e9 / planned[name] if planned.get(name) and name not in CONTENT else 1.0
        yield Row(
            stage="disk",
            what=name,
            unit="GB",
            planned=planned.get(name),
            measured=size / 1e9,
            whole=full[name] * ratio,
        )


def _stage_rows(
    name: str,
    marker: Mapping[str, Any],
    noted: Mapping[str, Any],
    little: ModelPlan,
    whole: ModelPlan,
    flop: Mapping[str, float],
) -> Iterator[Row]:
    """Time, memory and throughput of a stage."""

    def row(
        what: str, unit: str, measured: float, planned: float | None = None, full: float | None = None
    ) -> Row:
        return Row(stage=name, what=what, unit=unit, planned=planned, measured=measured, whole=full)

    yield row("time", "s", marker["seconds"])
    yield row("memory of the host", "GB", marker["peak_bytes"] / 1e9)
    on_gpu = noted.get("device_bytes", 0) / 1e9
    if on_gpu:
        planned = little.costs.gpu_memory_gb.get(name)
        scaled = whole.costs.gpu_memory_gb[name] * on_gpu / planned if planned else None
        yield row("memory of a GPU", "GB", on_gpu, planned, scaled)
    if name == "training":
        what = "memory of a process" if on_gpu else HOST
        used = marker["values"]["peak_memory_mb"] * 2**20 / 1e9
        full = whole.memory_gb * used / little.memory_gb if on_gpu else whole.memory_gb
        yield row(what, "GB", used, little.memory_gb, full)
    seconds = _seconds(name, marker, noted)
    if flop.get(name) and seconds:
        reached = flop[name] / seconds
        yield row("reached, all processes", "TFLOP/s", reached / 1e12)
        yield row("hours here", "h", seconds / 3600, full=whole.costs.flop[name] / reached / 3600)


def _seconds(name: str, marker: Mapping[str, Any], noted: Mapping[str, Any]) -> float:
    """Return what the counted work took: by the steady rate where there is one, else all of the stage."""
    if name == "images" and noted.get("rate"):
        return float(marker["values"]["images"] / noted["rate"])
    if name == "training" and noted.get("step_seconds"):
        return float(noted["step_seconds"] * marker["values"]["steps"])
    return float(marker["seconds"])


def _problems(train: TrainConfig, output: Path, processes: int, rows: list[Row]) -> Iterator[str]:
    """Yield what the whole run would lack on this machine, each with the keys that help."""
    import torch

    disk = sum(row.whole or 0.0 for row in rows if row.stage == "disk")
    kept = train.keep_checkpoints + bool(train.validation_images)
    disk += kept * sum(row.whole or 0.0 for row in rows if row.what == "a checkpoint")
    free = shutil.disk_usage(_existing(output)).free / 1e9
    if disk > free:
        yield (
            f"the whole run's {disk:,.0f} GB on a disk with {free:,.0f} GB free"
            f" ({shorten(output)}); {REMEDIES['disk']}"
        )
    if not torch.cuda.is_available():
        yield from _too_much_for_a_cpu(processes, rows)
        return
    most = torch.cuda.get_device_properties(0).total_memory / 1e9
    for row in rows:
        if row.what == "memory of a GPU" and row.whole and row.whole > most:
            yield f"{row.stage}: {row.whole:,.1f} GB on a GPU of {most:,.1f}; {REMEDIES[row.stage]}"


def _too_much_for_a_cpu(processes: int, rows: list[Row]) -> Iterator[str]:
    """Yield what the whole run's training lacks, in the memory that all processes share."""
    needed = processes * sum(row.whole or 0.0 for row in rows if row.what == HOST)
    there = memory_of_machine() / 1e9
    if needed > there:
        yield (
            f"training: {needed:,.1f} GB on a machine with {there:,.1f} GB of memory and no GPU; "
            f"{REMEDIES['training']}, or fewer train.processes"
        )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
