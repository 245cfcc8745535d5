"""What [cluster] says reaches Ray: which nodes may run the workers of a stage.

`test_cluster.py` takes the whole command to a cluster of three raylets.
"""

import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from l2p_mini.paths import GRAMMAR
from l2p_run.cluster import workers_that_fit
from l2p_run.errors import UserError
from l2p_train.errors import TrainError
from l2p_train.run.cluster import failure
from l2p_transfer.config import Config, load_config
from l2p_transfer.errors import TransferError
from l2p_transfer.evaluation import painting
from l2p_transfer.runner import identities
from PIL import Image

ROOT = Path(__file__).parents[2]
STAGES = ("llm", "synthesis", "training", "evaluation")


@pytest.fixture
def config(minimal_config: Path) -> Callable[..., Config]:
    """Loads the least config, overridden."""
    return lambda *overrides: load_config(minimal_config, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["synthesis_resources={synthesis = 1}"], "synthesis_resources is for the nodes of a cluster; give"),
        (["address=auto", "training_resources={GPU = 1}"], "training_resources.GPU is one of Ray's own"),
        (["address=auto", "llm_resources={llm = 'two'}"], "llm_resources.llm is 'two'; it must be a number"),
        (["address=auto", "llm_resources={llm = 0}"], "llm_resources.llm is 0; it must be a number above 0"),
        (["address=auto", "evaluation_resources={e = 1.5}"], "evaluation_resources.e is 1.5; Ray divides"),
        (["address=auto", "training_resource={t = 1}"], "did you mean 'training_resources'?"),
    ],
)
def test_resources_that_no_node_can_have_are_refused(
    config: Callable[..., Config], overrides: Sequence[str], message: str
) -> None:
    with pytest.raises(TransferError, match=message):
        config(*(f"cluster.{override}" for override in overrides))


def test_where_a_run_runs_does_not_change_what_it_makes(config: Callable[..., Config]) -> None:
    placed = [f"cluster.{stage}_resources={{ {stage} = 1 }}" for stage in STAGES]
    here, there = config(), config("cluster.address=auto", *placed)
    assert dict(there.cluster.training_resources) == {"training": 1}
    assert [identity for _, identity in identities(here)] == [identity for _, identity in identities(there)]


def test_there_are_as_many_workers_as_find_what_they_take() -> None:
    cluster = {"CPU": 64.0, "GPU": 9.0, "training": 8.0, "node:10.0.0.1": 1.0}
    assert workers_that_fit(cluster, {}) == 9
    assert workers_that_fit(cluster, {"training": 1}) == 8
    assert workers_that_fit(cluster, {"training": 0.5}) == 9
    assert workers_that_fit({"CPU": 4.0}, {}) == 4
    with pytest.raises(UserError, match=r"takes 1 'synthesis', the cluster has CPU 64, GPU 9, training 8;"):
        workers_that_fit(cluster, {"synthesis": 1}, setting="cluster.synthesis_resources")


def test_the_manifest_offers_what_its_config_takes() -> None:
    _, job = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8"))
    words = shlex.split(job["spec"]["entrypoint"])
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    config = load_config(ROOT / words[1], overrides)
    cluster, processes = config.cluster, config.processes
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
    for taken in (cluster.synthesis_resources, cluster.training_resources, cluster.evaluation_resources):
        assert taken and workers_that_fit({"GPU": 9, "CPU": 144, **offered}, taken) == processes


def test_all_training_processes_of_the_manifest_are_in_one_pod() -> None:
    """GPUs of different pods would exchange gradients over the network."""
    _, job = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8"))
    config = load_config(ROOT / shlex.split(job["spec"]["entrypoint"])[1])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    resources = container["resources"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 1
    assert resources["limits"] == resources["requests"]
    assert resources["limits"]["nvidia.com/gpu"] == config.processes
    assert int(resources["limits"]["cpu"]) >= config.processes * config.cluster.cpus_per_process


def test_without_a_cluster_the_evaluation_paints_here(config: Callable[..., Config]) -> None:
    with painting(config("evaluate.workers=3")) as place:
        assert place == {"workers": 3}


def test_what_ray_says_at_its_end_is_the_message(tmp_path: Path) -> None:
    """tests/train/test_cluster_launchers.py has a loss that is not a number."""
    head = "Training failed due to worker errors:\n[Rank 0]\nTraceback (most recent call last):\n"
    lost = failure(RuntimeError(f"{head}ray.exceptions.ActorDiedError: the node died\n"), tmp_path / "ray")
    assert isinstance(lost, TrainError)
    assert "the node died; its logs are in" in str(lost)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of one node, with two of each resource."""
    # Under `uv run` it would else build this environment again for every worker.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    ray.init(
        "local",  # never somebody's running cluster
        num_cpus=4,
        resources=dict.fromkeys(STAGES, 2),
        include_dashboard=False,
        object_store_memory=150 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}},
    )
    yield ray
    ray.shutdown()


@contextmanager
def watched(ray: Any, resource: str) -> Iterator[list[float]]:
    """How much of a resource was free, looked at all the time."""
    free: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            free.append(ray.available_resources().get(resource, 0.0))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield free
    finally:
        ended.set()
        thread.join()


def probe(note: Path) -> Any:
    """Stands for a model: its images are black; it notes what Ray gave to the actor that holds it."""

    def load(device: str) -> Any:  # local, so that it travels to the actor by value
        import ray

        note.write_text(json.dumps(ray.get_runtime_context().get_assigned_resources()))
        return lambda prompts, seeds: [Image.new("RGB", (8, 8)) for _ in prompts]

    return load


def test_the_painters_of_an_evaluation_take_its_resources(ray: Any, tmp_path: Path) -> None:
    from l2p_eval.painting import generate_images, plan_jobs

    jobs = plan_jobs(["a circle"], 1, seed=0)
    note = tmp_path / "resources.json"
    generate_images(
        probe(note),
        jobs,
        tmp_path / "images",
        settings={},
        workers=1,
        executor="ray",
        resources={"evaluation": 2},
    )
    assert json.loads(note.read_text())["evaluation"] == 2


def test_workers_that_paint_the_corpus_take_its_resources(
    ray: Any, tmp_path: Path, untrained_source: Path
) -> None:
    from l2p_data.prompts.generation import generate_prompts
    from l2p_data.prompts.grammar import GrammarGenerator
    from l2p_data.synthesis.config import SynthesisConfig
    from l2p_data.synthesis.synthesize import synthesize

    prompts = generate_prompts(GrammarGenerator(GRAMMAR, seed=0), 2, categories=None, seed=0)
    settings = SynthesisConfig(
        model=untrained_source,
        output=tmp_path / "corpus",
        seeds_per_prompt=1,
        width=64,
        height=64,
        rows_per_shard=1,
        worker_resources={"synthesis": 1},
        pipeline_kwargs={"num_inference_steps": 1, "max_sequence_length": 32},
    )
    with watched(ray, "synthesis") as free:
        synthesize(prompts, settings)
    assert min(free) == 0, "two workers, one each: the node holds no third"


def test_training_processes_take_their_resources(ray: Any, tmp_path: Path, untrained_source: Path) -> None:
    """They are refused, having been placed: the model directory is not there."""
    from l2p_train import TrainConfig
    from l2p_train.run.ray_train import train_on_ray

    settings = TrainConfig(
        model=tmp_path / "none", corpus=tmp_path / "none", output=tmp_path / "out", batch_size=2
    )
    with watched(ray, "training") as free, pytest.raises(Exception, match="none"):
        train_on_ray(settings, 1, use_gpu=False, max_failures=0, resources_per_process={"training": 2})
    assert min(free) == 0
