"""What a rehearsal runs on: a source and judges of random weights, a few prompts, a few of GenEval's rows."""

import json
import shutil
import time
from typing import TYPE_CHECKING

from l2p_run.places import shorten, write_text

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError
from l2p_transfer.stages import STAGES

if TYPE_CHECKING:
    from l2p_transfer.rehearsal import Recorder

PROMPTS = (
    "A weathered fishing boat rests on a pebble beach at low tide, its blue paint peeling in long strips,"
    " while two gulls stand on the bow and a pale morning sky fills the space above the quiet water.",
    "A baker in a flour-dusted apron lifts a tray of round loaves from a brick oven, warm light falling"
    " across the wooden table in front of her, with copper pans hanging in a row along the tiled wall.",
    "A narrow street after rain, cobbles shining under paper lanterns, a bicycle leaning against a green"
    " door and a cat asleep on the window sill above it, photographed from a low angle in the evening.",
    "Three ripe pears lie in a shallow ceramic bowl on a linen cloth, one of them cut in half, with soft"
    " light from a window on the left and a dark grey wall behind, in the manner of an old still life.",
)
METADATA = (
    '{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}',
    '{"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "bench", "count": 1}],'
    ' "prompt": "a photo of a cat and a bench"}',
    '{"tag": "counting", "include": [{"class": "apple", "count": 3}], "exclude": [{"class": "apple",'
    ' "count": 4}], "prompt": "a photo of three apples"}',
    '{"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}],'
    ' "prompt": "a photo of a red cup"}',
    '{"tag": "position", "include": [{"class": "chair", "count": 1}, {"class": "bird", "count": 1,'
    ' "position": ["left of", 0]}], "prompt": "a photo of a bird left of a chair"}',
    '{"tag": "color_attr", "include": [{"class": "bus", "count": 1, "color": "blue"}, {"class": "bicycle",'
    ' "count": 1, "color": "green"}], "prompt": "a photo of a blue bus and a green bicycle"}',
)


def prepare(config: Config, small: Config, depth: int | None, recorder: "Recorder") -> None:
    """Write the source, the judges, the prompts and GenEval's rows."""
    from l2p_arch.surgery.random_source import write_random_source

    folder, started = small.source.model.parent, time.perf_counter()
    known = config.source.model.is_dir()
    title = "A source of random weights"
    recorder.display.start(0, len(STAGES), title)
    family = _family(config)
    written = write_random_source(
        folder / "source",
        family,
        like=config.source.model if known else None,
        depth=depth,
        on_progress=lambda done, total: recorder.display.progress(done / 1e9, total / 1e9, "GB"),
    )
    recorder.display.finish(f"{written / 1e9:,.2f} GB", time.perf_counter() - started)
    if "source" not in recorder.notes:
        recorder.note("source", seconds=time.perf_counter() - started, bytes=written)
    if small.evaluate.detector == "coco":
        _write_judges(small)
    write_text(folder / "prompts.txt", "\n".join(_prompts(config, small.prompts.count)) + "\n")
    write_text(small.evaluate.metadata, "\n".join(_metadata(config)) + "\n")


def _family(config: Config) -> str:
    if config.source.model.is_dir():
        from l2p_arch.surgery.source import open_source

        return open_source(config.source.model).family.name
    if not config.source.family:
        raise TransferError(
            f"source.model {shorten(config.source.model)} does not exist, and source.family does not say what"
            ' it would be; give one of them, for example family = "z-image"'
        )
    return config.source.family


def _write_judges(small: Config) -> None:
    from l2p_eval.geneval.random_judges import write_random_clip, write_random_detector
    from transformers.utils import logging

    logging.disable_progress_bar()
    for path, write in (
        (small.evaluate.detector_model, write_random_detector),
        (small.evaluate.color_model, write_random_clip),
    ):
        assert path is not None
        if not path.is_dir():
            partial = path.with_name(f".{path.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            partial.rename(path)


def _prompts(config: Config, count: int) -> list[str]:
    """The config's own first prompts if they are there, else ours, in variants."""
    if config.prompts.engine == "file" and config.prompts.file and config.prompts.file.is_file():
        from l2p_transfer.language import prompts_of_file

        return [" ".join(text.split()) for text in prompts_of_file(config.prompts.file)["prompt"].head(count)]
    hours = ("at dawn", "at noon", "in the evening", "at night")
    return [
        PROMPTS[number % len(PROMPTS)].replace(".", f", take {number}, {hours[number % 4]}.")
        for number in range(count)
    ]


def _metadata(config: Config) -> list[str]:
    """The first row of each kind of the config's own file, or six of ours."""
    if not config.evaluate.metadata.is_file():
        return list(METADATA)
    first: dict[str, str] = {}
    for line in config.evaluate.metadata.read_text(encoding="utf-8").splitlines():
        if line.strip():
            first.setdefault(json.loads(line)["tag"], line)
    return list(first.values())
