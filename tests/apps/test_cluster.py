"""A transfer on a Ray cluster of several nodes, of which one dies in each stage that runs there."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from l2p_mini.paths import EVALUATION_METADATA
from l2p_transfer.cli import main

CONFIG = """
[run]
output = "run"
[source]
model = "SOURCE"
num_inference_steps = 1
max_sequence_length = 32
[prompts]
engine = "vllm"
llm = "llm"
replicas = 1
count = 24
[images]
seeds_per_prompt = 1
width = 64
height = 64
batch_size = 1
rows_per_shard = 1
workers = 2
[surgery]
head_channels = [8, 8, 16, 16]
[train]
steps = 200  # long enough to be struck in their midst
batch_size = 2
trainable = 1
processes = 1
precision = "fp32"
zero_stage = 0
checkpoint_every = 10
log_every = 1
sample_every = 0
[evaluate]
metadata = "metadata.jsonl"
images_per_prompt = 1
num_inference_steps = 1
batch_size = 1
"""
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
    tmp_path: Path, untrained_source: Path, language_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", str(PATIENCE))  # of a busy machine
    # Nodes join from threads, where no signal handler can be set; `_cluster` ends them all.
    monkeypatch.setattr("ray._private.node.Node._register_shutdown_hooks", lambda node: None)
    Path("tiny.toml").write_text(CONFIG.replace("SOURCE", str(untrained_source)))
    rows = EVALUATION_METADATA.read_text().splitlines()
    Path("metadata.jsonl").write_text("\n".join([rows[0], rows[-1]]) + "\n")
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
        _when(
            language_model.is_file,
            lambda: _kill_the_node_of(cluster, "_Replica", "writer"),
            struck,
        )
        _when(
            lambda: 2 <= len(list((run / "corpus").glob("part-*.parquet"))) < 20,
            lambda: _kill_the_node_of(cluster, "SynthesisWorker", "painter"),
            struck,
        )
        _when(
            lambda: any((run / "train" / "checkpoints").glob("step-*")),
            lambda: _kill_the_node_of(cluster, "RayTrainWorker", "trainer"),
            struck,
        )
        _when(
            lambda: (run / "evaluation" / "source" / "generation.json").is_file(),
            lambda: _kill_the_node_of(cluster, "_RayPainter", "painter"),
            struck,
        )
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
    prompts = [Path(name, "prompts/filtered.parquet").read_bytes() for name in ("alone", "run")]
    assert prompts[0] == prompts[1]
    shards = [
        json.loads(Path(name, "corpus/manifest.json").read_text())["shards"] for name in ("alone", "run")
    ]
    assert shards[0] == shards[1]
    records = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    starts = [record["step"] for record in records if record["event"] == "start"]
    assert starts[0] == 0 and starts[-1] > 0  # the second worker went on from a checkpoint
    weights = [
        [path.read_bytes() for path in sorted(Path(name, "model/transformer").glob("*.safetensors"))]
        for name in ("alone", "run")
    ]
    assert weights[0] == weights[1]
    images = [
        {path.relative_to(name): path.read_bytes() for path in Path(name, "evaluation").rglob("*.png")}
        for name in ("alone", "run")
    ]
    assert images[0] and images[0] == images[1]
