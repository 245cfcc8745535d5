"""Real processes that die: a driver at random moments, a node of a Ray cluster."""

import json
import subprocess
import sys
from pathlib import Path

from l2p_data import SynthesisConfig, prompt_records, synthesize, verify

ROOT = Path(__file__).parents[2]
PROMPTS = [f"a red circle number {index}" for index in range(12)]
SETTINGS = """seeds_per_prompt=1, width=64, height=64, batch_size=1, rows_per_shard=1,
    pipeline_kwargs={"num_inference_steps": 2, "guidance_scale": 0.0, "max_sequence_length": 32}"""

NODE_LOSS = """
import json, os, sys, time
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
import ray
from ray.cluster_utils import Cluster
from l2p_data import SynthesisConfig, prompt_records, synthesize
model, corpus, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
node = {"num_cpus": 1, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
second = cluster.add_node(**node)
cluster.wait_for_nodes()

def hold_the_second_half():
    # Runs first in every worker: from the seventh on, shards wait until the node is lost, as long ones would.
    from l2p_data.synthesis.worker import SynthesisWorker

    make = SynthesisWorker._make

    def wait_and_make(self, index, rows):
        while index >= 6 and not os.path.exists(corpus + ".lost"):
            time.sleep(0.05)
        return make(self, index, rows)

    SynthesisWorker._make = wait_and_make

ray.init(
    address=cluster.address,
    log_to_driver=False,
    logging_level="ERROR",
    runtime_env={"worker_process_setup_hook": hold_the_second_half},
)
# No shard is handed out before both workers have loaded the model, however slow one of the nodes is.
ray.data.DataContext.get_current().wait_for_min_actors_s = 500
workers = {}

def lose_a_node(state):
    if state.shards >= 2 and not workers:
        from ray._private.state import actors
        workers["before"] = [
            actor["Address"]["NodeID"] == second.node_id
            for actor in actors().values()
            if actor["State"] == "ALIVE" and "SynthesisWorker" in actor["ActorClassName"]
        ]
        cluster.remove_node(second, allow_graceful=False)
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.05)
        open(corpus + ".lost", "x").close()
        workers["shards"] = state.shards

config = SynthesisConfig(model=model, output=corpus, workers=2, SETTINGS)
manifest = synthesize(prompt_records(prompts), config, lose_a_node)
report = {**workers, "rows": manifest.rows, "nodes": sum(n["Alive"] for n in ray.nodes())}
with open(corpus + ".json", "w") as file:  # Ray prints what it likes, when it likes, on the standard output
    json.dump(report, file)
ray.shutdown()
cluster.shutdown()
""".replace("SETTINGS", SETTINGS)


def content(corpus: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(corpus)): path.read_bytes()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def test_a_node_that_dies_mid_synthesis_costs_time_only(untrained_source: Path, tmp_path: Path) -> None:
    """Two nodes of one worker each; one node's processes are killed after two to six of twelve shards."""
    command = [sys.executable, "-c", NODE_LOSS, str(untrained_source), str(tmp_path / "cluster")]
    command.append(json.dumps(PROMPTS))
    lost = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert lost.returncode == 0, lost.stderr[-3000:]
    report = json.loads((tmp_path / "cluster.json").read_text())
    assert sorted(report["before"]) == [False, True]  # both nodes were at work
    assert 2 <= report["shards"] <= 6 and report["nodes"] == 1 and report["rows"] == 12
    config = eval(
        f"SynthesisConfig(model=untrained_source, output=tmp_path / 'quiet', workers=0, {SETTINGS})"
    )
    assert isinstance(config, SynthesisConfig)
    synthesize(prompt_records(PROMPTS), config)
    assert content(tmp_path / "cluster") == content(tmp_path / "quiet")
    assert verify(tmp_path / "cluster", decode=True)["failed"] == 0


def test_a_driver_killed_at_random_moments_resumes_to_the_same_bytes() -> None:
    """Three points; `benchmarks/data_kill.py --points 20` is the long run."""
    command = [sys.executable, str(ROOT / "benchmarks" / "data_kill.py"), "--points", "3", "--seed", "5"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout.count("same bytes") == 3
