"""Synthesis: nothing lost, nothing twice, the same bytes however often it was interrupted."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from diffusers import DiffusionPipeline
from l2p_data import (
    DataError,
    SynthesisConfig,
    SynthesisProgress,
    prompt_records,
    read_corpus,
    synthesize,
    verify,
)
from l2p_data.corpus.identity import earlier_fingerprint, image_seed
from l2p_data.corpus.images import decode_image
from l2p_data.filters.filtering import filter_prompts
from l2p_data.synthesis.ledger import release
from l2p_data.synthesis.synthesize import plan_shards
from l2p_data.synthesis.worker import Pixels, SynthesisWorker, WorkerSettings, make_shard

PROMPTS = [f"a red circle number {index}" for index in range(5)]
PIPELINE = {"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32}


def config(model: Path, output: Path, **changes: object) -> SynthesisConfig:
    values = {
        "seeds_per_prompt": 2,
        "width": 64,
        "height": 64,
        "batch_size": 3,
        "rows_per_shard": 4,
        "workers": 0,
    }
    return SynthesisConfig(model=model, output=output, pipeline_kwargs=PIPELINE, **{**values, **changes})  # type: ignore[arg-type]


def content(corpus: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(corpus)): path.read_bytes()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus made in this process, without Ray, in one go."""
    corpus = tmp_path_factory.mktemp("data") / "corpus"
    synthesize(prompt_records(PROMPTS), config(untrained_source, corpus))
    return corpus


@pytest.mark.parametrize("model", ["untrained", "broken"])
def test_a_process_that_painted_a_corpus_has_its_threads_again(
    model: str, untrained_source: Path, tmp_path: Path
) -> None:
    """What it computes afterwards, a score say, would differ in its last bits and take one core only."""
    source = untrained_source
    if model == "broken":
        source = tmp_path / "broken"
        shutil.copytree(untrained_source, source)
        shutil.rmtree(source / "vae")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(DataError) if model == "broken" else nullcontext():
            synthesize(prompt_records(PROMPTS[:1]), config(source, tmp_path / "corpus", threads_per_worker=2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_every_prompt_gets_its_images_with_their_provenance(
    undisturbed: Path, untrained_source: Path
) -> None:
    frame = read_corpus(undisturbed)
    assert verify(undisturbed, decode=True)["rows"] == frame.height == 10
    assert frame["prompt"].to_list() == [text for text in PROMPTS for _ in range(2)]
    for row in frame.iter_rows(named=True):
        prompt_id, index = row["id"].rsplit("-", 1)
        assert row["seed"] == image_seed(prompt_id, int(index))
        assert decode_image(row["image"]).size == (row["width"], row["height"]) == (64, 64)
    assert frame["seed"].n_unique() == 10
    assert frame["source_model"].str.starts_with(f"{untrained_source.name}@").all()


def test_a_pipeline_that_is_on_the_device_by_turns_gives_the_same_bytes(
    undisturbed: Path, untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hooks of a GPU, with the CPU in its place."""
    asked: list[object] = []
    offload = DiffusionPipeline.enable_model_cpu_offload

    def enable(pipeline: DiffusionPipeline, *args: object, **options: object) -> None:
        asked.append(options)
        offload(pipeline, *args, **options)

    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", enable)
    corpus = tmp_path / "corpus"
    synthesize(prompt_records(PROMPTS), config(untrained_source, corpus, cpu_offload=True))
    assert asked[0] == {"device": "cpu"}
    assert content(corpus) == content(undisturbed)


def test_a_driver_killed_midway_on_ray_and_started_again_gives_the_undisturbed_bytes(
    undisturbed: Path, untrained_source: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    program = f"""
import os, signal
from l2p_data import SynthesisConfig, prompt_records, synthesize
def report(state):
    if state.shards:
        os.kill(os.getpid(), signal.SIGKILL)
config = SynthesisConfig(model={str(untrained_source)!r}, output={str(corpus)!r}, seeds_per_prompt=2,
    width=64, height=64, batch_size=3, rows_per_shard=4, workers=1, pipeline_kwargs={PIPELINE!r})
synthesize(prompt_records({PROMPTS!r}), config, report)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert killed.returncode == -9, killed.stderr
    assert killed.stderr == ""  # Ray is quiet
    assert list(corpus.glob("part-*.parquet")) and not (corpus / "_manifest.json").exists()
    states: list[SynthesisProgress] = []
    manifest = synthesize(prompt_records(PROMPTS), config(untrained_source, corpus), states.append)
    assert states[0].shards >= 1 and states[-1].images == states[-1].total == manifest.rows == 10
    assert content(corpus) == content(undisturbed)


def test_shards_that_ray_is_told_of_in_waves_have_the_undisturbed_bytes(
    undisturbed: Path, untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l2p_data.synthesis import executor

    monkeypatch.setattr(executor, "WAVE", 2)  # of three shards
    corpus = tmp_path / "corpus"
    synthesize(prompt_records(PROMPTS), config(untrained_source, corpus, workers=1))
    assert content(corpus) == content(undisturbed)


def test_running_again_touches_nothing_and_healing_remakes_only_what_is_missing(
    undisturbed: Path, untrained_source: Path
) -> None:
    before = content(undisturbed)
    times = {path: path.stat().st_mtime_ns for path in undisturbed.glob("part-*")}
    synthesize(prompt_records(PROMPTS), config(untrained_source, undisturbed))
    assert times == {path: path.stat().st_mtime_ns for path in undisturbed.glob("part-*")}
    lost = undisturbed / "part-00001.parquet"
    lost.unlink()
    (undisturbed / ".part-00001.parquet.0.partial").write_bytes(b"left behind by a crash")
    synthesize(prompt_records(PROMPTS), config(untrained_source, undisturbed))
    assert content(undisturbed) == before
    assert [path for path, time in times.items() if path.stat().st_mtime_ns != time] == [lost]


def test_a_corpus_of_an_earlier_version_goes_on_under_its_own_names(
    undisturbed: Path, untrained_source: Path, tmp_path: Path
) -> None:
    """Its manifest, ledger and fingerprint as they were called and made then; one shard is missing."""
    corpus = tmp_path / "corpus"
    shutil.copytree(undisturbed, corpus)
    (corpus / "_manifest.json").rename(corpus / "manifest.json")
    (corpus / ".ledger").rename(corpus / "ledger")
    earlier = f"{untrained_source.name}@{earlier_fingerprint(untrained_source)}"
    settings = json.loads((corpus / "ledger" / "settings.json").read_text())
    assert settings["source_model"] != earlier
    (corpus / "ledger" / "settings.json").write_text(json.dumps({**settings, "source_model": earlier}))
    (corpus / "part-00001.parquet").unlink()
    manifest = synthesize(prompt_records(PROMPTS), config(untrained_source, corpus))
    assert manifest.rows == 10 and manifest.settings["source_model"] == earlier
    assert pl.read_parquet(corpus / "part-00001.parquet")["source_model"].unique().to_list() == [earlier]
    assert {path.name for path in corpus.iterdir()} == {path.name for path in undisturbed.iterdir()}
    assert verify(corpus)["rows"] == 10


@pytest.mark.parametrize("noted_whole", [False, True])
def test_a_source_changed_in_its_middle_under_a_corpus_of_an_earlier_version_is_refused(
    undisturbed: Path, untrained_source: Path, tmp_path: Path, noted_whole: bool
) -> None:
    """The earlier fingerprint does not see it: the time does, or the whole fingerprint noted since."""
    corpus, source = tmp_path / "corpus", tmp_path / untrained_source.name
    shutil.copytree(undisturbed, corpus)
    shutil.copytree(untrained_source, source)
    settings = json.loads((corpus / ".ledger" / "settings.json").read_text())
    settings["source_model"] = f"{source.name}@{earlier_fingerprint(source)}"
    (corpus / ".ledger" / "settings.json").write_text(json.dumps(settings))
    weights = max(source.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    if noted_whole:
        synthesize(prompt_records(PROMPTS), config(source, corpus))
        synthesize(prompt_records(PROMPTS), config(source, corpus))
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"merged")
    then = 0 if noted_whole else time.time() + 60
    os.utime(weights, (then, then))
    assert settings["source_model"].endswith(earlier_fingerprint(source))
    said = "has changed since the corpus" if noted_whole else f"{weights.name} was written after this corpus"
    with pytest.raises(DataError, match=said):
        synthesize(prompt_records(PROMPTS), config(source, corpus))
    if not noted_whole:  # the remedy that the error names
        os.utime(weights, (0, 0))
        assert synthesize(prompt_records(PROMPTS), config(source, corpus)).rows == 10


def test_a_finished_shard_that_was_cut_is_reported_not_overwritten(
    undisturbed: Path, untrained_source: Path
) -> None:
    shard = undisturbed / "part-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"part-00000.parquet has \d+ bytes, .* truncated"):
        synthesize(prompt_records(PROMPTS), config(untrained_source, undisturbed))
    shard.write_bytes(whole)


def test_other_settings_in_the_same_directory_are_an_error_with_the_difference(
    undisturbed: Path, untrained_source: Path
) -> None:
    with pytest.raises(DataError, match="batch_size: was 3, now 2"):
        synthesize(prompt_records(PROMPTS), config(untrained_source, undisturbed, batch_size=2))
    with pytest.raises(DataError, match="begun with other settings"):
        synthesize(prompt_records(PROMPTS[:3]), config(untrained_source, undisturbed))


def test_a_pipeline_that_cannot_run_is_one_clear_error(untrained_source: Path, tmp_path: Path) -> None:
    wrong = SynthesisConfig(
        model=untrained_source,
        output=tmp_path / "c",
        workers=0,
        width=64,
        height=64,
        pipeline_kwargs={"stepz": 1},
    )
    with pytest.raises(DataError, match=r"failed on every image of the first shard: TypeError.*stepz"):
        synthesize(prompt_records(["a cat"]), wrong)
    assert not list((tmp_path / "c").glob("*.parquet"))
    right = replace(
        wrong, pipeline_kwargs=PIPELINE, seeds_per_prompt=1
    )  # it has made nothing to disagree with
    assert synthesize(prompt_records(["a cat"]), right).rows == 1


def test_a_directory_that_others_are_at_work_in_is_refused_before_its_first_shard(
    untrained_source: Path, tmp_path: Path
) -> None:
    first = config(untrained_source, tmp_path / "c")
    synthesize(prompt_records(["a cat"]), first)
    for path in (tmp_path / "c").glob("*.parquet"):
        path.unlink()  # as it is while the first worker loads its weights
    other = replace(first, batch_size=1)
    with pytest.raises(
        DataError, match=r"was begun with other settings .batch_size: was 3, now 1.*or delete"
    ):
        synthesize(prompt_records(["a cat"]), other)
    release(tmp_path / "c")
    assert synthesize(prompt_records(["a cat"]), other).settings["batch_size"] == 1


def test_rows_that_fail_are_listed_and_cost_nobody_else(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def generate(prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int]) -> list[Pixels]:
        calls.append(list(prompts))
        if any("bad" in prompt for prompt in prompts):
            raise RuntimeError("out of\nmemory")
        images = [np.random.default_rng(seed).random((8, 8, 3)) for seed in seeds]
        for prompt, image in zip(prompts, images, strict=True):
            if prompt == "void":
                image[0] = np.nan
        return images

    settings = WorkerSettings(
        model="",
        corpus=str(tmp_path),
        source_model="m",
        batch_size=3,
        threads=1,
        dtype="auto",
        image_format="png",
        max_attempts=3,
    )
    prompts = prompt_records(["a", "bad", "c", "void", "d"])
    rows = plan_shards(prompts, config(tmp_path, tmp_path, seeds_per_prompt=1, rows_per_shard=9))[0]
    entry = make_shard(0, rows, generate, settings)
    assert entry["file"]["rows"] == 3
    failed = [
        ("bad", "RuntimeError: out of memory", 3),
        ("void", "not-finite: the pipeline returned NaN or infinity", 1),
    ]
    by_prompt = {row["prompt"]: row for row in rows}
    assert entry["failures"] == [
        {
            "id": by_prompt[prompt]["id"],
            "seed": by_prompt[prompt]["seed"],
            "error": error,
            "attempts": attempts,
        }
        for prompt, error, attempts in failed
    ]
    assert calls == [["a", "bad", "c"], ["a"], ["bad"], ["bad"], ["c"], ["void", "d"]]


def test_a_shard_that_keeps_killing_its_worker_is_given_up(tmp_path: Path) -> None:
    settings = WorkerSettings(
        model=str(tmp_path),
        corpus=str(tmp_path),
        source_model="m",
        batch_size=3,
        threads=1,
        dtype="auto",
        image_format="png",
        max_attempts=1,
    )

    class Killed(BaseException):
        """Passes every `except Exception`, as a kill -9 does."""

    def generate(prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int]) -> list[Pixels]:
        raise Killed

    worker = SynthesisWorker.__new__(SynthesisWorker)  # without loading a model
    worker.settings, worker.broken, worker.generate, worker.checks = settings, None, generate, []
    rows = plan_shards(prompt_records(["a cat"]), config(tmp_path, tmp_path))[0]
    work = {"shard": [4], "rows": [json.dumps(rows)]}
    for _ in range(3):
        with pytest.raises(Killed):
            worker(work)
    result = json.loads(worker(work)["result"][0])
    assert result["shard"] == 4 and "killed its worker 3 times" in result["broken"]


def test_shards_follow_from_prompts_and_settings_alone() -> None:
    prompts = filter_prompts(prompt_records(["a cat", "", "a dog"])).filter(pl.col("status") == "keep")
    shards = plan_shards(prompts, config(Path("m"), Path("o"), seeds_per_prompt=3, rows_per_shard=4))
    assert [len(rows) for rows in shards] == [4, 2]
    assert len({row["id"] for rows in shards for row in rows}) == 6
    assert shards == plan_shards(prompts, config(Path("m"), Path("o"), seeds_per_prompt=3, rows_per_shard=4))


def test_a_plan_is_a_sequence_of_shards_of_one_size_after_the_other() -> None:
    prompts = prompt_records([f"a cat number {number}" for number in range(40)])
    sizes = ((64, 64), (96, 48), (48, 96))
    plan = plan_shards(
        prompts, config(Path("m"), Path("o"), seeds_per_prompt=3, rows_per_shard=7, buckets=sizes)
    )
    rows = [row for shard in plan for row in shard]
    assert len(rows) == plan.rows == 120 and [len(shard) for shard in plan] == [7] * 17 + [1]
    assert list(plan.ids()) == [row["id"] for row in rows] and len({row["id"] for row in rows}) == 120
    order = [sizes.index((row["width"], row["height"])) for row in rows]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    for size in range(3):  # within a size, as the prompts come
        numbers = [
            int(row["prompt"].split()[-1]) for row, own in zip(rows, order, strict=True) if own == size
        ]
        assert numbers == sorted(numbers)
    assert plan[-1] == plan[17] and plan[2:4] == [plan[2], plan[3]]
    with pytest.raises(IndexError):
        plan[18]


def test_a_digest_of_many_parts_is_the_digest_of_all_at_once() -> None:
    from l2p_data.corpus.identity import digest, digest_of

    for parts in ([], ["a"], ["ab", "c"], ['ä"', 7, "\ud800"]):
        assert digest_of(iter(parts)) == digest(*parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"dtype": "int8"}, "dtype 'int8' is not known"),
        ({"image_format": "gif"}, "image_format 'gif'"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        config(Path("m"), Path("o"), **change)


def test_missing_models_and_unwritable_outputs_are_clear_errors(tmp_path: Path) -> None:
    prompts = prompt_records(["a cat"])
    with pytest.raises(DataError, match=r"model directory .* does not exist"):
        synthesize(prompts, config(tmp_path / "none", tmp_path / "out"))
    with pytest.raises(DataError, match="neither a directory nor in the local Hugging Face cache"):
        synthesize(prompts, SynthesisConfig(model="nobody/nothing", output=tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no model_index.json"):
        synthesize(prompts, config(tmp_path / "empty", tmp_path / "out"))
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to the folder"):
        synthesize(prompts, config(tmp_path / "empty", tmp_path / "file" / "out"))
    with pytest.raises(DataError, match="no prompt passed the filter"):
        synthesize(filter_prompts(prompt_records([""])), config(tmp_path / "empty", tmp_path / "out"))
    assert not os.path.exists(tmp_path / "out" / "_manifest.json")
