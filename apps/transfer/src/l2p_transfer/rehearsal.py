"""`--rehearse`: every stage of a config for real, on random weights and a handful of items, measured.

All of it lies in one folder beside the run's own, which is removed at the end:

    RUN-rehearsal/  source/     the source's classes, shapes and files, with random values
                    judges/     GenEval's two models, likewise, where the config judges with them
                    run/        a run directory: the config's own stages
                    rehearsal.json   what was measured so far

Run the same command again and it goes on where it stopped.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_run.places import read_json_if_whole, shorten, write_json
from l2p_run.progress import Display

from l2p_transfer.config import Config, resolve_processes
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths
from l2p_transfer.plan import check_inputs
from l2p_transfer.rehearsal_inputs import prepare
from l2p_transfer.runner import execute
from l2p_transfer.stages import STAGES

if TYPE_CHECKING:
    from l2p_transfer.rehearsal_table import Table

SUFFIX = "-rehearsal"
STEPS, HALF = 4, 2  # of training; the run is resumed from the checkpoint at HALF
PAINT_STEPS = 2  # of sampling
BATCHES = 2  # that each worker paints: the second is quicker than the first
ROOM = 1.1  # of the disk's, over what is counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `--rehearse` may be told."""

    depth: int | None = None  # blocks of each kind; None: all
    size: int | None = None  # px of a square image; None: the config's own
    keep: bool = False  # the folder, at the end


def folder_of(config: Config) -> Path:
    """Where the rehearsal of a config lies."""
    return config.run.output.with_name(config.run.output.name + SUFFIX)


def rehearse(config: Config, options: Options, display: Display, command: Sequence[str]) -> "Table":
    """Run every stage on random weights, and lay what was measured beside the plan.

    The table is also kept as RUN-rehearsal.json, beside the folder that is removed.

    Raises:
        TransferError: the disk is too small, or the folder holds the rehearsal of another config.
    """
    from l2p_run.usage import DeviceMeter

    from l2p_transfer.rehearsal_table import make_table

    folder = folder_of(config)
    small = small_config(config, options)
    with DeviceMeter() as meter:
        recorder = Recorder(display, folder / "rehearsal.json", meter)
        _claim(recorder, config, options)
        _check_disk(config, small, options)
        prepare(config, small, options.depth, recorder)
        check_inputs(small)
        execute(small, recorder, command=command)
        _resume(small, recorder)
    table = make_table(config, small, recorder.notes, _disk(folder))
    write_json(folder.with_name(f"{folder.name}.json"), table.to_row())
    if not options.keep:
        shutil.rmtree(folder)
    return table


def small_config(config: Config, options: Options) -> Config:
    """The config whose stages are run: the same settings on a handful of items, in the rehearsal's folder."""
    folder = folder_of(config)
    run = folder / "run"
    painting = resolve_processes(config) if config.images.workers is None else max(1, config.images.workers)
    images = BATCHES * config.images.batch_size * painting
    sizes: dict[str, Any] = {}
    if options.size:
        sizes = {"width": options.size, "height": options.size}
    train = config.train
    judges = folder / "judges"
    coco = config.evaluate.detector == "coco"
    return replace(
        config,
        run=replace(config.run, output=run, storage=None),
        source=replace(
            config.source,
            model=folder / "source",
            num_inference_steps=min(PAINT_STEPS, config.source.num_inference_steps),
        ),
        prompts=replace(
            config.prompts,
            engine="grammar" if config.prompts.engine == "grammar" else "file",
            file=folder / "prompts.txt",
            count=max(HALF, -(-images // config.images.seeds_per_prompt)),
            audit=False,
        ),
        images=replace(
            config.images,
            rows_per_shard=config.images.batch_size,
            buckets=None if options.size else config.images.buckets,
            **sizes,
        ),
        train=replace(
            train,
            model=run / "initial",
            corpus=run / "corpus",
            output=run / "train",
            mirror=None,
            steps=STEPS,
            warmup_steps=min(train.warmup_steps, 1),
            resolution=options.size and train.resolution and options.size,
            checkpoint_every=HALF,
            keep_checkpoints=2,
            log_every=1,
            sample_every=STEPS,
            sample_count=min(1, train.sample_count),
            sample_prompts=(),
            sample_steps=PAINT_STEPS,
            validate_every=0,
            validation_images=min(train.validation_images, 2),
        ),
        evaluate=replace(
            config.evaluate,
            metadata=folder / "metadata.jsonl",
            detector_model=judges / "detector" if coco else config.evaluate.detector_model,
            color_model=judges / "clip" if coco else config.evaluate.color_model,
            images_per_prompt=1,
            num_inference_steps=min(PAINT_STEPS, config.evaluate.num_inference_steps),
            **sizes,
        ),
    )


class Recorder:
    """A display that also notes what each stage took; its notes are kept in a file."""

    def __init__(self, display: Display, path: Path, meter: Any) -> None:
        self.display, self.path, self.meter = display, path, meter
        self.notes: dict[str, Any] = read_json_if_whole(path) or {}
        self._title, self._marks = "", list[tuple[float, float, float, str]]()

    def start(self, number: int, total: int, title: str) -> None:
        self.meter.take()
        self._title, self._marks = title, []
        self.display.start(number, total, title)

    def progress(self, done: float, total: float, note: str = "") -> None:
        self._marks.append((time.perf_counter(), done, total, note))
        self.display.progress(done, total, note)

    def finish(self, note: str, seconds: float) -> None:
        self.note(self._title, seconds=seconds, device_bytes=self.meter.take(), rate=_rate(self._marks))
        self.display.finish(note, seconds)

    def skip(self, number: int, total: int, title: str, note: str) -> None:
        self.display.skip(number, total, title, note)

    def close(self) -> None:
        self.display.close()

    def note(self, what: str, **values: Any) -> None:
        """Keep what was measured of a stage."""
        self.notes[what] = self.notes.get(what, {}) | values
        write_json(self.path, self.notes)


def _rate(marks: Sequence[tuple[float, float, float, str]]) -> float | None:
    """Items a second of the second half, when all is loaded; None where that cannot be told."""
    if not marks or not marks[-1][2]:
        return None
    end, done, total, _ = marks[-1]
    half = [(moment, count) for moment, count, _, _ in marks if count >= total / 2]
    seconds, items = end - half[0][0], done - half[0][1]
    return items / seconds if half and items > 0 and seconds > 0 else None


def _claim(recorder: Recorder, config: Config, options: Options) -> None:
    """Note whose rehearsal the folder is, or raise if it is another's."""
    import json

    tables = config.to_tables()
    own = json.loads(
        json.dumps({"config": tables, "depth": options.depth, "size": options.size}, default=str)
    )
    known = recorder.notes.get("of")
    if known is not None and known != own:
        where = shorten(recorder.path.parent)
        raise TransferError(f"{where} holds a rehearsal with other settings; remove it, or restore them")
    folder = recorder.path.parent
    if known is None and folder.is_dir() and any(folder.iterdir()):
        raise TransferError(f"{shorten(folder)} is not empty and holds no rehearsal; move it away")
    recorder.notes["of"] = own
    write_json(recorder.path, recorder.notes)


def _check_disk(config: Config, small: Config, options: Options) -> None:
    """Raise unless there is room for what the rehearsal will write."""
    from l2p_transfer.rehearsal_table import planned_disk

    folder = folder_of(config)
    there = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    needed = planned_disk(config, small, options) * ROOM - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TransferError(
            f"the rehearsal needs {needed / 1e9:,.1f} GB in {shorten(folder)}, and {free / 1e9:,.1f} GB are"
            " free; free some, give another run.output, or rehearse fewer blocks with --rehearse-depth 4"
        )


def _resume(small: Config, recorder: Recorder) -> None:
    """Take the last steps back and resume from the checkpoint before them: are the weights the same?"""
    from l2p_train.run.launcher import launch

    if "resume" in recorder.notes:
        return
    train = small.train
    output, started = Path(train.output), time.perf_counter()
    weights = output / "model" / "transformer"
    if "weights" not in recorder.notes:
        recorder.note("weights", sha256=_hashes(weights))
    shutil.rmtree(output / "checkpoints" / f"step-{STEPS:06d}", ignore_errors=True)
    (output / "result.json").unlink(missing_ok=True)
    recorder.display.start(len(STAGES) + 1, len(STAGES) + 1, "Resuming the training")
    launch(train, processes=resolve_processes(small))
    same = _hashes(weights) == recorder.notes["weights"]["sha256"]
    seconds = time.perf_counter() - started
    recorder.note("resume", seconds=seconds, same=same)
    recorder.display.finish("the same weights" if same else "OTHER weights", seconds)


def _hashes(folder: Path) -> dict[str, str]:
    import hashlib

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _disk(folder: Path) -> Mapping[str, int]:
    """Bytes of what the plan counts, each file once."""
    run = RunPaths(folder / "run")
    steps = [path for path in (run.train / "checkpoints").glob("step-*") if path.is_dir()]
    size = lambda path: sum(one.lstat().st_size for one in path.rglob("*") if one.is_file())  # noqa: E731
    return {
        "source": size(folder / "source"),
        "corpus": size(run.corpus),
        "initial and final model": size(run.initial) + size(run.train / "model"),
        "a checkpoint": max((size(path) for path in steps), default=0),
        "text embeddings": size(run.train / "conditioning"),
    }
