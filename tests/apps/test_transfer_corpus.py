"""Prompts, filter and images of a run: what a file brings, what may be changed before anything is painted."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from l2p_transfer.cli import main


def test_what_makes_the_corpus_can_be_changed_until_an_image_is_painted(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A filter that drops every prompt, then a source that cannot be loaded."""
    write_tiny_run(tmp_path, filter={"min_characters": 500}, prompts={"count": 3})
    monkeypatch.chdir(tmp_path)
    assert main(["tiny.toml"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: no prompt passed the filter (too-short: 3)")
    assert said.endswith(
        "in run/prompts/filtered.parquet; then change [filter] or [prompts], and add --update"
    )
    assert pl.read_parquet("run/prompts/filtered.parquet")["reason"].to_list() == ["too-short"] * 3

    write_tiny_run(tmp_path, source={"dtype": "float32"})
    assert main(["tiny.toml"]) == 2
    assert "add --update to redo what depends on it" in capsys.readouterr().err

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("l2p_data.synthesis.worker.load_generator", fails)
        assert main(["tiny.toml", "--update"]) == 2
    assert "out of memory" in capsys.readouterr().err
    changed = ["--set", "images.batch_size=2", "--set", "source.num_inference_steps=2"]
    assert main(["tiny.toml", *changed, "--update"]) == 0
    assert pl.read_parquet("run/corpus/*.parquet").height == 4
    Path("run/stages/images.json").unlink()  # as if it had been stopped with some shards
    for change in ("prompts.count=5", "filter.brands=false", "source.dtype=bfloat16", "images.batch_size=1"):
        assert main(["tiny.toml", *changed, "--set", change, "--update"]) == 2
        assert "choose another run.output" in capsys.readouterr().err, change


def test_held_out_images_that_leave_none_to_train_on_are_refused_before_any_is_painted(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four prompts would be enough, and the filter keeps two."""
    (tmp_path / "prompts.txt").write_text("a cat\na red circle on gray\na dog\ntwo blue rings on white\n")
    prompts = {"grammar": None, "engine": "file", "file": "prompts.txt"}
    write_tiny_run(tmp_path, prompts=prompts, filter={"min_characters": 10}, train={"validation_images": 2})
    monkeypatch.chdir(tmp_path)
    assert main(["tiny.toml"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "train.validation_images is 2, and 2 prompts" in said
    assert "use 1 or fewer" in said
    assert not Path("run/corpus").exists()
    assert main(["tiny.toml", "--set", "train.validation_images=1", "--dry-run", "--update"]) == 0


def test_prompts_that_a_filter_dropped_do_not_come_back(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two of five are dropped, and `count` counts the others."""
    from l2p_data.filters.filtering import FilterRules, filter_prompts
    from l2p_data.prompts.records import prompt_records
    from l2p_transfer.config import load_config
    from l2p_transfer.paths import RunPaths
    from l2p_transfer.stages import Run, write_prompts
    from l2p_transfer.stages import filter_prompts as filter_stage

    texts = [
        "a cat",
        "a red circle on gray",
        "a dog",
        "two blue rings on white",
        "three green stars on black",
    ]
    judged = filter_prompts(prompt_records(texts), FilterRules(min_characters=10))
    assert judged["status"].to_list() == ["drop", "keep", "drop", "keep", "keep"]
    judged.write_parquet(tmp_path / "judged.parquet")
    prompts = {"grammar": None, "engine": "file", "file": "judged.parquet", "count": 2}
    write_tiny_run(tmp_path, prompts=prompts, filter={"min_characters": 1})
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("tiny.toml"))
    run = Run(config=config, paths=RunPaths(config.run.output))
    write_prompts(run, lambda *_: None)
    filter_stage(run, lambda *_: None)
    assert pl.read_parquet(run.paths.filtered)["prompt"].to_list() == [texts[1], texts[3]]

    judged.filter(pl.col("status") == "drop").write_parquet(tmp_path / "judged.parquet")
    assert main(["tiny.toml"]) == 2
    said = "error: every prompt of judged.parquet has been dropped by a filter"
    assert capsys.readouterr().err.startswith(said)
