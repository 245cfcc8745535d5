"""The page of one metric: models side by side, the paper's rows marked as such, pictures of failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from l2p_run.places import write_text

from l2p_eval.layout import open_image
from l2p_eval.report.pictures import SMALL, data_uri


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that does not show what was asked, and why."""

    path: Path
    prompt: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model or folder. `values`: column -> number, the headline first."""

    name: str
    values: Mapping[str, float]
    definition: Mapping[str, Any]  # everything that defines the numbers
    pictures: Sequence[tuple[Path, str]] = ()  # (image, prompt): the first ones, not chosen by quality
    failures: Sequence[Failure] = ()
    problem: str = ""  # why it is partial; "" when it is whole
    warnings: Sequence[str] = ()  # what a reader must know before the numbers mean anything


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """All that the page shows."""

    title: str
    metric: str
    better: str  # "higher is better"
    entries: Sequence[Entry]
    paper: Sequence[tuple[str, float]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""  # why entries are missing; "" when all are there

    @property
    def columns(self) -> list[str]:
        """Names of all values, in the order in which they first appear."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.values))


def write_scorecard(card: Scorecard, folder: Path) -> Path:
    """Write `report.html` (one file, images inside) and `report.md` under `folder`; return the page."""
    import jinja2

    for name in ("report.html", "report.md"):
        environment = jinja2.Environment(
            autoescape=name.endswith("html"),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "number": lambda value: "-" if value is None else f"{value:.4g}",
            "embed": lambda path: data_uri(open_image(path)),
            "small": lambda path: max(open_image(path).size) <= SMALL,
        }
        source = files("l2p_eval").joinpath("templates", f"scorecard.{name.partition('.')[2]}.j2")
        text = environment.from_string(source.read_text(encoding="utf-8")).render(card=card)
        write_text(folder / name, text)
    return folder / "report.html"
