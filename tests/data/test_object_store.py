"""The corpus in an object store: the S3 protocol over HTTP, spoken to a server on loopback."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from l2p_data import DataError, SynthesisConfig, prompt_records, read_corpus, synthesize
from l2p_data.cli import main
from l2p_data.corpus.dataset import write_shard
from l2p_data.corpus.files import location, write_bytes

PROMPTS = [f"a red circle number {index}" for index in range(3)]
SETTINGS = """seeds_per_prompt=1, width=64, height=64, rows_per_shard=1,
    pipeline_kwargs={"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32}"""
KILLED = f"""
import os, signal, sys
from l2p_data import SynthesisConfig, prompt_records, synthesize

def die(state):
    if state.shards == 2:
        os.kill(os.getpid(), signal.SIGKILL)

config = SynthesisConfig(model=sys.argv[1], output=sys.argv[2], workers=0, {SETTINGS})
synthesize(prompt_records({PROMPTS}), config, die)
"""


def config(model: Path, output: str | Path, workers: int = 0) -> SynthesisConfig:
    made = eval(f"SynthesisConfig(model=model, output=output, workers=workers, {SETTINGS})")
    assert isinstance(made, SynthesisConfig)
    return made


def content(corpus: str | Path) -> dict[str, bytes]:
    """Every file of a corpus, ledger included, read past this package."""
    store, root = fsspec.url_to_fs(str(corpus), use_listings_cache=False)
    return {name.removeprefix(f"{root}/"): store.cat_file(name) for name in store.find(root)}


@pytest.fixture(scope="module")
def local(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = tmp_path_factory.mktemp("local") / "corpus"
    synthesize(prompt_records(PROMPTS), config(untrained_source, corpus))
    return corpus


@pytest.fixture(scope="module")
def stored(bucket: str, untrained_source: Path) -> str:
    """A corpus whose driver was killed after two of three shards, and then started again."""
    corpus = f"{bucket}/runs/corpus"
    command = [sys.executable, "-c", KILLED, str(untrained_source), corpus]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    left = set(content(corpus))
    assert "part-00001.parquet" in left and not left & {"part-00002.parquet", "_manifest.json"}
    with pytest.raises(DataError, match="the corpus is unfinished"):
        read_corpus(corpus)
    synthesize(prompt_records(PROMPTS), config(untrained_source, corpus))
    return corpus


def test_a_killed_synthesis_into_s3_goes_on_to_the_bytes_of_an_undisturbed_local_one(
    stored: str, local: Path
) -> None:
    assert content(stored) == content(local)
    assert len(content(stored)) == 3 + 3 + 2  # shards, ledger entries, settings, manifest: nothing else


def test_workers_on_ray_write_to_s3_and_this_process_sees_it(
    bucket: str, local: Path, untrained_source: Path
) -> None:
    corpus = f"{bucket}/ray"
    synthesize(prompt_records(PROMPTS), config(untrained_source, corpus, workers=1))
    assert content(corpus) == content(local)
    assert read_corpus(corpus, ["id"]).height == 3


def test_every_command_reads_a_corpus_in_s3(
    stored: str, local: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def summary(*arguments: str) -> dict[str, object]:
        assert main([*arguments, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert isinstance(result, dict)
        return result

    checked = summary("verify", stored, "--decode")
    assert (checked["ok"], checked["shards"], checked["rows"]) == (True, 3, 3)
    sheet = tmp_path / "sheet.png"
    numbers = summary("stats", stored, "--contact-sheet", str(sheet))
    expected = summary("stats", str(local))
    assert {name: numbers[name] for name in expected} == expected and sheet.stat().st_size > 0
    assert summary("export", stored, "--out", str(tmp_path / "folder"))["images"] == 3
    images = read_corpus(local)["image"].struct.field("bytes").to_list()
    assert sorted(path.read_bytes() for path in (tmp_path / "folder").glob("*.png")) == sorted(images)
    assert summary("export", stored, "--out", f"{bucket}/folder", "--layout", "sidecar")["images"] == 3
    assert summary("import", f"{bucket}/folder", "--out", f"{bucket}/again")["rows"] == 3
    assert sorted(read_corpus(f"{bucket}/again")["prompt"]) == PROMPTS


def test_a_shard_that_another_process_adds_is_seen_after_the_folder_was_listed(bucket: str) -> None:
    corpus = location(f"{bucket}/shared")
    write_bytes(corpus / "first", b"1")
    assert [path.name for path in corpus.iterdir()] == ["first"]
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.pipe_file("bucket/shared/second", b"2")
    assert (corpus / "second").is_file() and len(list(corpus.iterdir())) == 2


def test_a_damaged_shard_in_s3_is_named(stored: str, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in content(stored).items():
        write_bytes(location(f"{bucket}/damaged") / name, data)
    rows = read_corpus(stored).to_dicts()
    write_shard(location(f"{bucket}/damaged"), 1, [{**rows[1], "prompt": "another"}])
    assert main(["verify", f"{bucket}/damaged"]) == 2
    assert "damaged/part-00001.parquet has changed" in capsys.readouterr().err


def test_a_missing_bucket_or_missing_credentials_are_one_line_and_create_nothing(
    bucket: str, untrained_source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"cannot write s3://bukcet/corpus.*bucket does not exist"):
        synthesize(prompt_records(PROMPTS), config(untrained_source, "s3://bukcet/corpus"))
    assert not fsspec.filesystem("s3", use_listings_cache=False).exists("bukcet")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert main(["verify", f"{bucket}/corpus"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert len(lines) == 1 and "credentials" in lines[0] and "Traceback" not in lines[0]
