"""A scorer turns the pictures of one entry into numbers; this is what all of them share."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from l2p_eval.layout import read_folder
from l2p_eval.prompt_sets import PromptSet, find_images, read_prompt_set
from l2p_eval.report.scorecard import Failure

from l2p_evaluate.errors import EvaluateError
from l2p_evaluate.pictures import Pictures, Progress


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a scorer says. `problem`: why it covers only a part of the images, "" if it covers them all."""

    values: Mapping[str, float]  # the headline first
    definition: Mapping[str, Any]
    failures: Sequence[Failure] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # for results.json only
    problem: str = ""


class Scorer(ABC):
    """One metric with its models loaded; made from the command's options, which it checks.

    Attributes:
        prompts: what a model has to paint; () if the command brings no prompts.
    """

    title: ClassVar[str]
    better: ClassVar[str] = "higher is better"
    paper: str = ""  # key of l2p_eval.report.paper.rows_for
    prompts: Sequence[str] = ()

    @staticmethod
    @abstractmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declares the metric's own options."""

    @abstractmethod
    def __init__(self, options: argparse.Namespace) -> None: ...

    @abstractmethod
    def score(self, pictures: Pictures, progress: Progress) -> Score:
        """Raises `EvalError` when nothing can be scored."""


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Options of metrics that take prompts from a file."""
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=".csv, .jsonl, .json, .parquet: names (file_name, name) and texts (text, prompt, captions)",
    )
    parser.add_argument("--text-column", metavar="NAME", help="of --prompts; default: the first known one")


def prompt_set(options: argparse.Namespace) -> PromptSet | None:
    """The file of --prompts."""
    return read_prompt_set(options.prompts, options.text_column) if options.prompts else None


def images_of(pictures: Pictures, prompts: PromptSet | None) -> list[Path]:
    """All image files of an entry; those that --prompts names, where it is given for a folder."""
    if pictures.paths:
        return list(pictures.paths)
    return find_images(pictures.folder, prompts.names if prompts else None)


def pairs_of(pictures: Pictures, prompts: PromptSet | None) -> tuple[list[Path], list[str]]:
    """Images and their prompts: as painted, by --prompts, or by the metadata of GenEval's layout."""
    if pictures.paths:
        return list(pictures.paths), list(pictures.prompts)
    if prompts:
        return find_images(pictures.folder, prompts.names), list(prompts.texts)
    samples = read_folder(pictures.folder)
    return [sample.path for sample in samples], [sample.prompt.prompt for sample in samples]


def need(value: Any, option: str, what: str) -> Any:
    """The value of an option that this metric cannot do without."""
    if value is None:
        raise EvaluateError(f"{option} is missing; give {what}")
    return value


def device() -> str:
    """Where scoring networks run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
