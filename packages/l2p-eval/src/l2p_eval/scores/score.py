"""What a score function is given, and what it says."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2p_run import hashes

from l2p_eval.errors import EvalError
from l2p_eval.layout import read_folder
from l2p_eval.painting import Pictures
from l2p_eval.prompt_sets import find_images
from l2p_eval.report.scorecard import Failure

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a score function says.

    Attributes:
        values: the headline first; every one is finite, and anything else raises `EvalError`.
        definition: everything that defines the values.
        details: for results.json only.
        warnings: what a reader must know before the values mean anything.
        problem: why they cover only a part of the images, "" where they cover them all.
        paper: key of `l2p_eval.report.paper.rows_for`: the paper's own numbers of this kind.
    """

    values: Mapping[str, float]
    definition: Mapping[str, Any]
    failures: Sequence[Failure] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    problem: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not math.isfinite(value):
                raise EvalError(f"{name} is {value}, which is no score; look for broken images or weights")

    @property
    def headline(self) -> float:
        """The value that stands for the others."""
        return next(iter(self.values.values()))

    def whole(self) -> "Score":
        """Itself; raises `EvalError` where it covers only a part of the images."""
        if self.problem:
            raise EvalError(self.problem)
        return self


def silent(done: int, total: int, what: str) -> None:
    """No progress."""


def files_of(pictures: Pictures) -> list[Path]:
    """Return all image files of an entry."""
    return list(pictures.paths) or find_images(pictures.folder)


def pairs_of(pictures: Pictures, *, named: bool = True) -> tuple[list[Path], list[str]]:
    """Return images and their prompts: as painted or named, or by the metadata of GenEval's layout."""
    if pictures.paths and named:
        return list(pictures.paths), list(pictures.prompts)
    samples = read_folder(pictures.folder)
    return [sample.path for sample in samples], [sample.prompt.prompt for sample in samples]


def sha256_of_images(paths: Sequence[Path]) -> str:
    """Return one hash over the contents of image files, in their order, in words."""
    digest = hashes.of_bytes(b"".join(bytes.fromhex(hashes.of_file(path)) for path in paths))
    return f"sha256 of its {len(paths)} files {digest}"


def sha256_of_texts(prompts: Sequence[str]) -> str:
    """Return prompts that the folder itself names, in words."""
    digest = hashes.of_bytes(json.dumps(list(prompts)).encode())
    return f"the folder's {len(prompts)}, sha256 {digest}"


def described_prompts(described: str) -> dict[str, str]:
    return {"prompts": described} if described else {}
