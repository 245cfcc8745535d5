"""A transfer on a Ray cluster of several nodes, of which one dies in each stage that runs there."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from l2p_transfer.cli import main

CHANGES: dict[str, dict[str, Any]] = {  # of the shared config; None: the key's default
    "prompts": {"grammar": None, "engine": "vllm", "llm": "llm", "replicas": 1, "count": 24},
    "images": {"batch_size": 1, "rows_per_shard": 1, "workers": 2},
    "train": {
        "steps": 200,  # long enough to be struck in their midst
        "zero_stage": 0,
        "learning_rate": None,
        "checkpoint_every": 10,
        "sample_every": 0,
        "sample_count": None,
        "sample_steps": None,
    },
    "evaluate": {"batch_size": 1, "noise_shift": None, "workers": None},
}
PATIENCE = 600  # s
VLLM = '''
"""In vLLM's place, which needs an environment of its own (tests/data/vllm loses a node of the real one): a
language model whose answers follow from the seeds. Everything around it is the real thing.
"""
import json, os, time
from types import SimpleNamespace
from vllm.sampling_params import StructuredOutputsParams

SamplingParams = SimpleNamespace

class LLM:
    def __init__(self, model, **settings):
        assert os.path.isfile(os.path.join(model, "config.json"))

    def chat(self, chats, sampling, use_tqdm):
        note("begins")
        answers = [self.answer(chat[0]["content"], how.seed) for chat, how in zip(chats, sampling)]
        note("ends")
        return answers

    def answer(self, message, seed):
        time.sleep(float(os.environ["L2P_TEST_SECONDS"]))
        subject = message.partition("Subject: ")[2].partition(" (")[0]
        text = f'A {subject} left of a blue square, and a sign that says "{seed % 10**6}".'
        answer = SimpleNamespace(finish_reason="stop", text=json.dumps({"prompt": text}))
        return SimpleNamespace(outputs=[answer])

def note(what):
    with open(os.environ["L2P_TEST_NOTES"], "a") as file:
        file.write(f"{what} {os.getpid()}\\n")
'''
SAMPLING_PARAMS = "from types import SimpleNamespace as StructuredOutputsParams\n"


@contextmanager
def _cluster() -> Iterator[Any]:
    """Four raylets on this machine: a head without CPUs, which is the driver's, a node with the language
    model, one that paints and one that trains, each of two CPUs."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    try:
        for role in ("writer", "painter", "trainer"):
            _add_node(cluster, role)
        yield cluster
    finally:
        cluster.shutdown()


def _add_node(cluster: Any, role: str) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=100 << 20, resources={role: 2})


def _kill_the_node_of(cluster: Any, actor: str, role: str) -> bool:
    """Kills, as a power cut would, the node of that role if such a worker runs on it; another joins."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        children = raylet.children(recursive=True)
        offers = node.get_resource_and_label_spec().resources
        if role in offers and any(actor in " ".join(child.cmdline()) for child in children):
            cluster.remove_node(node, allow_graceful=False)
            for child in children:  # left alone, a worker goes on for a while
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            _add_node(cluster, role)
            return True
    return False


def _when(ready: Callable[[], bool], strike: Callable[[], bool], struck: list[bool]) -> threading.Thread:
    """Strikes once, as soon as `ready`; the thread then stays."""

    def watch() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if ready() and strike():
                struck.append(True)
                threading.Event().wait()  # the kernel kills what a thread has started when the thread ends
            time.sleep(0.05)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _strike_in_every_stage(cluster: Any, run: Path, notes: Path, struck: list[bool]) -> None:
    shards = run / "corpus"
    checkpoints = run / "train" / "checkpoints"
    painting = run / "evaluation" / "source" / "generation.json"
    for ready, actor, role in (
        (notes.is_file, "_Replica", "writer"),
        (lambda: 2 <= len(list(shards.glob("part-*.parquet"))) < 20, "SynthesisWorker", "painter"),
        (lambda: any(checkpoints.glob("step-*")), "RayTrainWorker", "trainer"),
        (painting.is_file, "_RayPainter", "painter"),
    ):
        _when(ready, partial(_kill_the_node_of, cluster, actor, role), struck)


def _made_by(run: Path) -> dict[str, Any]:
    """What a run must make again to the byte."""
    weights = sorted((run / "model" / "transformer").glob("*.safetensors"))
    images = (run / "evaluation").rglob("*.png")
    return {
        "prompts": (run / "prompts" / "filtered.parquet").read_bytes(),
        "shards": json.loads((run / "corpus" / "_manifest.json").read_text())["shards"],
        "weights": [path.read_bytes() for path in weights],
        "evaluation": {path.relative_to(run): path.read_bytes() for path in images},
    }


@pytest.fixture
def language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts `VLLM` where this process and those of the nodes find it; returns the file with what it did."""
    package = tmp_path / "modules" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(VLLM)
    (package / "sampling_params.py").write_text(SAMPLING_PARAMS)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("L2P_TEST_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("L2P_TEST_SECONDS", "0.25")
    return tmp_path / "notes"


@pytest.mark.skipif(
    not os.environ.get("L2P_CLUSTER_TESTS"),
    reason="set L2P_CLUSTER_TESTS=1: four raylets need several minutes or a quiet machine",
)
def test_a_node_lost_in_each_stage_changes_nothing(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    language_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", str(PATIENCE))  # of a busy machine
    # Nodes join from threads, where no signal handler can be set; `_cluster` ends them all.
    monkeypatch.setattr("ray._private.node.Node._register_shutdown_hooks", lambda node: None)
    write_tiny_run(tmp_path, **CHANGES)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # one thread, as a worker of the cluster has
    try:
        here = ["--set", "images.workers=0", "--set", "evaluate.workers=0"]
        assert main(["tiny.toml", "--set", "run.output=alone", *here]) == 0
    finally:
        os.sched_setaffinity(0, cores)
    run, struck = Path("run"), []
    language_model.unlink()
    with _cluster() as cluster:
        _strike_in_every_stage(cluster, run, language_model, struck)
        places = {"llm": "writer", "synthesis": "painter", "training": "trainer", "evaluation": "painter"}
        overrides = [f"cluster.{stage}_resources={{ {role} = 1 }}" for stage, role in places.items()]
        there = [
            word for text in (f"cluster.address={cluster.address}", *overrides) for word in ("--set", text)
        ]
        assert main(["tiny.toml", *there]) == 0
    assert struck == [True] * 4, "a node of its role was not lost in every stage"
    # The answers came from a second replica: the first one was struck down amid its work.
    begun, lost, done = [line.split() for line in language_model.read_text().splitlines()]
    assert (begun[0], lost[0], done[0]) == ("begins", "begins", "ends") and begun[1] != lost[1] == done[1]
    records = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    starts = [record["step"] for record in records if record["event"] == "start"]
    assert starts[0] == 0 and starts[-1] > 0  # the second worker went on from a checkpoint
    made = [_made_by(folder) for folder in (Path("alone"), run)]
    for what, value in made[0].items():
        assert value and value == made[1][what], what
