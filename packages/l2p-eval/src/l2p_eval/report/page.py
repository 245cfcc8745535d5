"""One page that shows a transfer: what the L2P model paints beside its source, how well, and what it cost.

`RunReport` is all that the page needs, in plain values and paths, so that any program can fill it;
`write_report` turns it into `report.html` (one file, images inside) and `report.md` (with its images in
`samples/`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from l2p_run.places import write_text

from l2p_eval.geneval import GenEvalScores
from l2p_eval.geneval.retention import retention
from l2p_eval.layout import open_image
from l2p_eval.metrics.frechet import FrechetResult
from l2p_eval.report import paper
from l2p_eval.report.charts import loss_figure, save_png, to_svg
from l2p_eval.report.pictures import SMALL, comparison_sheet, data_uri


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file and the verdict on it; `correct` is None where it was not judged."""

    path: Path
    correct: bool | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The source's and the L2P model's image of one prompt and seed."""

    prompt: str
    tag: str
    seed: int
    source: Picture
    l2p: Picture


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage took. `peak_bytes`: memory of all its processes together; None where not measured."""

    title: str
    seconds: float
    peak_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain text; long ones are folded."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything a report shows. Empty parts are left out of the page."""

    title: str
    summary: str  # one or two sentences under the title
    source_name: str
    facts: Sequence[
        tuple[str, str, str]
    ] = ()  # (label, value, note) beside the scores in the head of the page
    pairs: Sequence[Pair] = ()
    failures: Sequence[Pair] = ()
    source_scores: GenEvalScores | None = None
    l2p_scores: GenEvalScores | None = None
    detector: str = ""  # what judged the images
    sampling: Mapping[str, str] = field(default_factory=dict)  # "source" and "L2P" -> how they were sampled
    frechet: Sequence[FrechetResult] = ()
    frechet_floor: FrechetResult | None = None  # of the source's images with other seeds from its own
    patch_grids: Mapping[str, float] = field(default_factory=dict)  # "source" and "l2p" -> borders / inside
    patch_size: int = 0  # px, of those patches
    loss: Sequence[tuple[int, float]] = ()
    progress: Sequence[tuple[str, Path]] = ()  # (caption, row of samples) in the order of training
    stages: Sequence[StageCost] = ()
    tables: Sequence[Table] = ()
    config: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def retention(self) -> float | None:
        """Share of the source's overall score that the L2P model keeps (sec. 4.2: 0.936)."""
        if self.source_scores is None or self.l2p_scores is None or not self.source_scores.overall:
            return None
        return self.l2p_scores.overall / self.source_scores.overall

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before the scores mean anything."""
        if self.source_scores is None or self.l2p_scores is None:
            return []
        found = [f"source: {text}" for text in self.source_scores.warnings]
        found += [f"L2P: {text}" for text in self.l2p_scores.warnings]
        images = self.l2p_scores.image_count
        kept = retention(self.l2p_scores.overall, self.source_scores.overall, images=images)
        return [*found, *([kept.note] if kept.note else [])]


def write_report(report: RunReport, folder: Path) -> Path:
    """Write `report.html`, `report.md` and the Markdown's images under `folder`; return the page's path."""
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    figure = loss_figure(report.loss) if report.loss else None
    if figure:
        save_png(figure, samples / "loss.png")
    for name, pairs in (("source-vs-l2p", report.pairs), ("failures", report.failures)):
        if pairs:
            _sheet(pairs).save(samples / f"{name}.png")
    values = {
        "report": report,
        "groups": _groups(report.pairs),
        "scores": _score_rows(report),
        "loss_svg": to_svg(figure) if figure else "",
        "paper": paper,
    }
    for name in ("report.md", "report.html"):
        write_text(folder / name, _template(f"{name}.j2").render(values))
    return folder / "report.html"


# --------------------------------------------------------------------------------------- what is shown


def _groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.tag, []).append(pair)
    return groups


def _score_rows(report: RunReport) -> list[dict[str, Any]]:
    """Per tag and overall: both scores, the retention and the number of images."""
    source, l2p = report.source_scores, report.l2p_scores
    if source is None or l2p is None:
        return []
    rows: list[dict[str, Any]] = [
        {"name": tag, "source": source.tags[tag], "l2p": l2p.tags[tag], "images": l2p.tag_counts[tag]}
        for tag in source.tags
        if tag in l2p.tags
    ]
    rows.append({"name": "overall", "source": source.overall, "l2p": l2p.overall, "images": l2p.image_count})
    for row in rows:
        row["retention"] = row["l2p"] / row["source"] if row["source"] else None
    return rows


def _sheet(pairs: Sequence[Pair], columns: int = 4) -> Any:
    """Return a PNG of pairs, one row per tag, or rows of `columns` when every tag has only a few."""
    rows = [
        (_words(tag), [(p.prompt, p.source.path, p.l2p.path) for p in group[:columns]])
        for tag, group in _groups(pairs).items()
    ]
    return comparison_sheet(rows)


# ------------------------------------------------------------------------------------------- rendering


def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=name.endswith("html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value, digits=0: "-" if value is None else f"{100 * value:.{digits}f} %",
        "score": lambda value: f"{value:.2f}",
        "embed": lambda path: data_uri(open_image(path)),
        "small": lambda path: max(open_image(path).size) <= SMALL,
        "duration": duration,
        "memory": memory,
        "words": _words,
    }
    return environment.from_string(files("l2p_eval").joinpath("templates", name).read_text(encoding="utf-8"))


def duration(seconds: float) -> str:
    """Return seconds for people: "8 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int | None) -> str:
    """Return bytes for people."""
    if size is None:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("color attr", "colour attribution").replace("colors", "colours")
