"""A node of a Ray cluster dies while the LLM on it writes: the real vLLM, on a CPU, in raylets of its own.

Runs in the environment that `test_vllm_engine.py` names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from l2p_data.engines.template import ANSWER_SCHEMA

pytest.importorskip("vllm")
from l2p_data.engines.vllm_engine import VLLMEngine, VLLMSettings

MESSAGES = [(f"Number {index}.", index) for index in range(24)]
PATIENCE = 300  # s


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three raylets: a head without CPUs, and two nodes that offer one "llm" each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", str(PATIENCE))  # of a busy machine
    head = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            add_node(made)
        yield made
    finally:
        made.shutdown()


def add_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20, resources={"llm": 1})


def kill_the_node_of(cluster: Any, pid: int) -> None:
    """Kills, as a power cut would, the node on which that process runs."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        children = raylet.children(recursive=True)
        if pid in [child.pid for child in children]:
            cluster.remove_node(node, allow_graceful=False)
            for child in children:  # left alone, a worker goes on for a while
                if child.is_running():
                    child.kill()
            return
    raise AssertionError(f"no node has the process {pid}")


def settings(model: Path, **more: Any) -> VLLMSettings:
    small = {"enforce_eager": True, "max_num_seqs": 4, "disable_log_stats": True}
    return VLLMSettings(
        model=model, max_tokens=24, max_model_len=256, messages_per_call=4, engine_kwargs=small, **more
    )


def test_the_answers_of_a_lost_node_come_from_another_one_and_are_the_same(
    cluster: Any, random_model: Path
) -> None:
    import ray

    placed = {"replicas": 2, "replica_resources": {"llm": 1}, "ray_address": cluster.address}
    with VLLMEngine(settings(random_model, **placed)) as engine:
        answers = engine.ask(MESSAGES, ANSWER_SCHEMA, 1.0)
        seen = dict([next(answers)])
        nodes = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("llm")]
        pids = [ray.get(replica.pid.remote()) for replica in engine._replicas]
        assert len(nodes) == 2 and len(set(pids)) == 2
        kill_the_node_of(cluster, pids[0])
        add_node(cluster)  # what an operator, or KubeRay, does
        seen |= dict(answers)
        asked = [replica.pid.options(max_task_retries=-1).remote() for replica in engine._replicas]
        again = ray.get(asked)
        assert again[0] != pids[0] and again[1] == pids[1]
    with VLLMEngine(settings(random_model)) as engine:
        undisturbed = dict(engine.ask(MESSAGES, ANSWER_SCHEMA, 1.0))
    assert sorted(seen) == list(range(24)) and seen == undisturbed
