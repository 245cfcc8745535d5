"""What a rehearsal runs on: a source and judges of random weights, a few prompts, a few of GenEval's rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

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


def write_source(
    folder: Path,
    *,
    like: Path | None,
    family: str,
    depth: int | None,
    on_progress: Callable[[int, int], None],
) -> int:
    """Write a source of random weights; returns its bytes.

    Args:
        like: a source directory whose classes and shapes it takes; None: those of `family` as published.
        depth: blocks of each kind, at most; None: all.
        on_progress: called with (bytes written, bytes in all).

    Raises:
        ArchError: no such family, or a directory that is no source.
    """
    from l2p_arch.surgery.random_source import write_random_source
    from l2p_arch.surgery.source import open_source

    family = open_source(like).family.name if like else family
    return write_random_source(folder, family, like=like, depth=depth, on_progress=on_progress)


def write_judges(detector: Path, clip: Path) -> None:
    """Write GenEval's two models with random weights, each whole or not at all; one that is there stays."""
    from l2p_eval.geneval.random_judges import write_random_clip, write_random_detector
    from transformers.utils import logging

    logging.disable_progress_bar()
    for path, write in ((detector, write_random_detector), (clip, write_random_clip)):
        if not path.is_dir():
            partial = path.with_name(f".{path.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            partial.rename(path)


def prompts(count: int) -> list[str]:
    """Return `count` different prompts of the length that corpora have."""
    hours = ("at dawn", "at noon", "in the evening", "at night")
    return [
        PROMPTS[number % len(PROMPTS)].replace(".", f", take {number}, {hours[number % 4]}.")
        for number in range(count)
    ]


def first_of_each_tag(metadata: Path | None) -> list[str]:
    """Return the first row of each kind of a file in GenEval's format, or six of ours where it is not
    there.
    """
    if metadata is None or not metadata.is_file():
        return list(METADATA)
    from l2p_eval.geneval import read_metadata

    first: dict[str, str] = {}
    for prompt in read_metadata(metadata):
        first.setdefault(prompt.tag, json.dumps(prompt.to_row(), ensure_ascii=False))
    return list(first.values())
