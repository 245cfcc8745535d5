"""A rehearsal in its folder: its inputs are written, stages run, the training is resumed, all is measured.

    RUN-rehearsal/  source/     the source's classes, shapes and files, with random values
                    judges/     GenEval's two models, likewise, where the transfer judges with them
                    run/        a run directory
                    rehearsal.json   what was measured so far

Who runs the stages is the caller; an interrupted rehearsal goes on where it stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2p_run import hashes
from l2p_run.places import shorten, write_json, write_text
from l2p_run.stages import read_marker
from l2p_run.usage import free_memory_of_machine

from l2p_plan.errors import PlanError
from l2p_plan.model import plan_model
from l2p_plan.rehearsal.inputs import first_of_each_tag, write_judges, write_source
from l2p_plan.rehearsal.measuring import Recorder, size_of, step_seconds
from l2p_plan.rehearsal.table import Measured, Table, make_table, planned_disk
from l2p_plan.transfer import Transfer

ROOM = 1.1  # of the disk's, over what is counted
LIBRARIES_GB = 1.0  # of a process on a CPU, before it holds a tensor


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One rehearsal.

    Attributes:
        folder: its own.
        whole: the transfer that it stands for.
        small: what is run: the same settings on a few items, in the folder.
        output: of the whole run.
        settings: whose rehearsal it is, as JSON values.
        stages: (name, title) of each, in order.
        depth: blocks of each kind of the source, at most; None: all.
    """

    folder: Path
    whole: Transfer
    small: Transfer
    output: Path
    settings: Mapping[str, Any]
    stages: Sequence[tuple[str, str]]
    depth: int | None = None

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    @property
    def notes(self) -> Path:
        """What was measured so far."""
        return self.folder / "rehearsal.json"

    def claim(self, recorder: Recorder) -> None:
        """Note whose rehearsal the folder is.

        Raises:
            PlanError: it is another's, or holds something else; or the disk has no room for this one.
        """
        own = json.loads(json.dumps(dict(self.settings), default=str))
        known, where = recorder.notes.get("of"), shorten(self.folder)
        if known is not None and known != own:
            raise PlanError(f"{where} holds a rehearsal with other settings; remove it, or restore them")
        if known is None and self.folder.is_dir() and any(self.folder.iterdir()):
            raise PlanError(f"{where} is not empty and holds no rehearsal; move it away")
        recorder.notes["of"] = own
        write_json(self.notes, recorder.notes)
        judges = any(self.small.evaluation.judges.values())
        there = sum(path.lstat().st_size for path in self.folder.rglob("*") if not path.is_dir())
        needed = planned_disk(self.whole.source, depth=self.depth, judges=judges) * ROOM - there
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise PlanError(
                f"the rehearsal needs {needed / 1e9:,.1f} GB in {where}, and {free / 1e9:,.1f} GB are free;"
                " free some, give another run.output, or rehearse fewer blocks with --rehearse-depth 4"
            )

    def prepare(self, recorder: Recorder, prompts: Sequence[str]) -> None:
        """Write the source, the judges, `prompts.txt` and `metadata.jsonl`.

        Raises:
            PlanError: there is no source, and no family says what it would be.
        """
        started, source, judged = time.perf_counter(), self.whole.source, self.small.evaluation
        like = source.directory if source.directory.is_dir() else None
        if not like and not source.family:
            raise PlanError(
                f"source.model {shorten(source.directory)} does not exist, and source.family does not say"
                ' what it would be; give one of them, for example family = "z-image"'
            )
        recorder.display.start(0, len(self.stages), "A source of random weights")
        written = write_source(
            self.small.source.directory,
            like=like,
            family=source.family,
            depth=self.depth,
            on_progress=lambda done, total: recorder.display.progress(done / 1e9, total / 1e9, "GB"),
        )
        recorder.display.finish(f"{written / 1e9:,.2f} GB", time.perf_counter() - started)
        if "source" not in recorder.notes:
            recorder.note("source", seconds=time.perf_counter() - started, bytes=written)
        detector, clip = judged.judges.get("detector_model"), judged.judges.get("color_model")
        if detector and clip:
            write_judges(detector, clip)
        write_text(self.folder / "prompts.txt", "\n".join(prompts) + "\n")
        rows = first_of_each_tag(self.whole.evaluation.metadata)
        write_text(self.folder / "metadata.jsonl", "\n".join(rows) + "\n")

    def check_memory(self) -> None:
        """Look, once the source is there, whether a CPU's memory holds the training: the system would end it,
        and what runs beside. A GPU says so itself.

        Raises:
            PlanError: it does not.
        """
        import torch

        if torch.cuda.is_available():
            return
        plan = plan_model(self.small)
        # A plan is a GPU's. Here the weights' file is mapped, too, while it is converted.
        mapped = size_of(self.small.source.directory / "transformer") / 1e9
        needed = plan.processes * (plan.memory_gb + LIBRARIES_GB) + mapped
        free = free_memory_of_machine() / 1e9
        if needed > free:
            raise PlanError(
                f"the rehearsal's training needs about {needed:,.1f} GB of memory (processes:"
                f" {plan.processes}), and {free:,.1f} GB are free; rehearse fewer blocks with"
                " --rehearse-depth 1, or add --set train.processes=1 or a smaller train.batch_size"
            )

    def resume(self, recorder: Recorder) -> None:
        """Take the last steps back and resume from the checkpoint before them: are the weights the same?"""
        from l2p_train.run.launcher import launch

        if "resume" in recorder.notes:
            return
        train, started = self.small.train, time.perf_counter()
        weights = train.output / "model" / "transformer"
        if "weights" not in recorder.notes:
            recorder.note("weights", sha256=_sha256(weights))
        last = train.output / "checkpoints" / f"step-{train.steps:06d}"
        shutil.rmtree(last, ignore_errors=True)
        (train.output / "result.json").unlink(missing_ok=True)
        number = len(self.stages) + 1
        recorder.display.start(number, number, "Resuming the training")
        launch(train, processes=self.small.processes)
        same = _sha256(weights) == recorder.notes["weights"]["sha256"]
        seconds = time.perf_counter() - started
        recorder.note("resume", seconds=seconds, same=same)
        recorder.display.finish("the same weights" if same else "OTHER weights", seconds)

    def table(self, recorder: Recorder) -> Table:
        """Return what was measured beside the plans of the rehearsal and of the whole run."""
        from l2p_eval.geneval import read_metadata

        measured = Measured(
            stages=list(self._stages(recorder.notes)),
            disk=self._disk(),
            evaluation_prompts=len(read_metadata(self.folder / "metadata.jsonl")),
            resumed_alike=recorder.notes["resume"]["same"],
        )
        little, whole = plan_model(self.small), plan_model(self.whole)
        return make_table(little, whole, measured, train=self.whole.train, output=self.output)

    def _stages(self, notes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
        """Yield name, marker and notes of each stage that ran."""
        for name, title in self.stages:
            noted = dict(notes.get(title, {}))
            if name == "training":
                noted["step_seconds"] = step_seconds(self.small.train.output / "metrics.jsonl")
            if marker := read_marker(self.run, name):
                yield name, marker, noted

    def _disk(self) -> Mapping[str, int]:
        """Return the bytes of what the plan counts, each file once."""
        train = self.small.train.output
        steps = [path for path in (train / "checkpoints").glob("step-*") if path.is_dir()]
        return {
            "source": size_of(self.folder / "source"),
            "corpus": size_of(self.run / "corpus"),
            "initial and final model": size_of(self.run / "initial", train / "model"),
            "a checkpoint": max((size_of(path) for path in steps), default=0),
            "text embeddings": size_of(train / "conditioning"),
        }


def _sha256(folder: Path) -> dict[str, str]:
    return {path.name: hashes.of_file(path) for path in sorted(folder.glob("*.safetensors"))}
