"""The report shows what it is given, escapes it, and leaves out what is missing."""

from dataclasses import replace
from pathlib import Path

import pytest
from l2p_eval.geneval import GenEvalScores
from l2p_eval.metrics.frechet import FrechetResult
from l2p_eval.report.page import Pair, Picture, RunReport, StageCost, Table, duration, memory, write_report
from PIL import Image


def scores(overall: float) -> GenEvalScores:
    tags = {"colors": overall, "counting": overall}
    counts = {"colors": 4, "counting": 4}
    return GenEvalScores(
        overall=overall,
        tags=tags,
        images=overall,
        prompts=overall,
        image_count=8,
        prompt_count=4,
        tag_counts=counts,
    )


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    paths = []
    for name, size in (("small", 64), ("large", 900)):
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", (size, size), "red").save(paths[-1])
    wrong = Picture(path=paths[1], correct=False, reason="expected 1 cat, found 0")
    return Pair(
        prompt="<b>a cat</b> & a dog",
        tag="colors",
        seed=7,
        source=Picture(path=paths[0], correct=True),
        l2p=wrong,
    )


def test_a_full_report_shows_retention_and_the_papers_rows_as_the_papers(tmp_path: Path, pair: Pair) -> None:
    report = RunReport(
        title="A run",
        summary="What was done.",
        source_name="source",
        pairs=[pair],
        failures=[pair],
        source_scores=scores(0.8),
        l2p_scores=scores(0.6),
        loss=[(step, 1 / step) for step in range(1, 30)],
        stages=[StageCost(title="Training", seconds=125, peak_bytes=2_500_000_000, note="30 steps")],
        tables=[Table(title="Surgery", columns=("name",), rows=[("layers",)], folded=True)],
        config='[run]\ntitle = "<x>"',
        provenance={"command": "l2p-transfer"},
    )
    page = write_report(report, tmp_path / "out").read_text()
    markdown = (tmp_path / "out" / "report.md").read_text()
    for text in (page, markdown):
        assert "75.0 %" in text
        assert "93.6 %" in text
        assert "2 min 05 s" in text
        assert "2.5 GB" in text
        assert "expected 1 cat, found 0" in text
    assert "From the paper, for context only" in page
    assert "&lt;b&gt;a cat&lt;/b&gt; &amp; a dog" in page
    assert "<b>a cat</b>" not in page
    assert "image/png;base64" in page  # the small picture, pixel by pixel
    assert "image/jpeg;base64" in page  # the large one, made smaller
    assert len(page) < 200_000
    for name in ("source-vs-l2p.png", "failures.png", "loss.png"):
        assert (tmp_path / "out" / "samples" / name).stat().st_size > 1000


def test_an_empty_report_still_renders(tmp_path: Path) -> None:
    report = RunReport(title="Nothing yet", summary="", source_name="source")
    page = write_report(report, tmp_path).read_text()
    assert "Nothing yet" in page
    assert "Scores" not in page
    assert report.retention is None


def test_a_source_that_scores_nothing_has_no_retention() -> None:
    report = RunReport(
        title="", summary="", source_name="", source_scores=scores(0.0), l2p_scores=scores(0.5)
    )
    assert report.retention is None


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (3.14, 42, 200, 7500)] == ["3.1 s", "42 s", "3 min 20 s", "2 h 05 min"]
    assert [memory(b) for b in (None, 3_400_000, 12_345_000_000)] == ["-", "3 MB", "12.3 GB"]


def test_a_score_above_the_source_and_a_blind_detector_stand_on_the_page(tmp_path: Path) -> None:
    from dataclasses import replace

    def page(source: GenEvalScores, l2p: GenEvalScores) -> str:
        report = RunReport(title="t", summary="s", source_name="n", source_scores=source, l2p_scores=l2p)
        write_report(report, tmp_path)
        html, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
        assert html.count("Mind:") == text.count("**Mind**")
        return text

    source = scores(0.5)
    assert "Mind" not in page(source, source)
    assert "more than its source's 0.500" in page(source, replace(source, overall=0.75))
    assert "source: the detector found no object at all" in page(replace(source, objects=0), source)
    assert "the source scores 0" in page(replace(source, overall=0.0), source)


def test_a_distance_stands_beside_its_floor_and_a_grid_beside_the_sources(tmp_path: Path, pair: Pair) -> None:
    def distance(value: float) -> FrechetResult:
        return FrechetResult(
            name="FD-efficientnet-lite0",
            value=value,
            reference_count=8,
            count=8,
            dimensions=1280,
            preprocessing="none",
            weights_sha256="0" * 64,
        )

    full = RunReport(
        title="A run",
        summary="What was done.",
        source_name="source",
        pairs=[pair],
        source_scores=scores(0.8),
        l2p_scores=scores(0.6),
        frechet=[distance(61.27)],
        frechet_floor=distance(42.13),
        patch_grids={"source": 1.0714, "l2p": 1.2345},
        patch_size=16,
    )
    old = replace(full, frechet_floor=None, patch_grids={})  # a run of the first version
    alone = replace(full, patch_grids={"l2p": 1.2345})
    for report, shown, hidden in (
        (full, ("61.27", "42.13", "1.071", "1.234", "before the transfer"), ()),
        (old, ("61.27",), ("floor", "atch grid")),
        (alone, ("1.234",), ("1.071",)),
    ):
        page = write_report(report, tmp_path / "out").read_text()
        for text in (page, (tmp_path / "out" / "report.md").read_text()):
            assert all(one in text for one in shown) and not any(one in text for one in hidden)
