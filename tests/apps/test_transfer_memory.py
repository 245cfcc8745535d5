"""What painting takes of a GPU: parts by turns paint the same images, and the plan counts the parts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from l2p_arch.files.part_sizes import of_directory
from l2p_transfer.cli import main
from l2p_transfer.config import load_config
from l2p_transfer.evaluation import l2p_model, source_model
from l2p_transfer.paths import RunPaths
from l2p_transfer.runner import differences, identities
from l2p_transfer.stages import Run, filter_prompts, make_images, write_prompts

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The devices that pipelines are on by turns, again after each call; the CPU is in the GPU's place."""
    asked: list[object] = []
    offload = DiffusionPipeline.enable_model_cpu_offload

    def noted(self: DiffusionPipeline, **options: object) -> None:
        asked.append(options["device"])
        offload(self, **options)

    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", noted)
    return asked


@pytest.mark.parametrize("kind", ["source", "l2p"])
def test_models_that_are_on_the_device_by_turns_paint_the_same(
    kind: str,
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    untrained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    offloaded: list[object],
) -> None:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    whole, by_turns = (
        source_model(config) if kind == "source" else l2p_model(config, RunPaths(untrained_run))
        for config in (
            load_config(Path("tiny.toml"), [f"evaluate.cpu_offload={offload}", "evaluate.dtype=float32"])
            for offload in ("false", "true")
        )
    )
    (one,) = whole.model.load("cpu")(["a red circle"], [3])
    assert offloaded == []
    (other,) = by_turns.model.load("cpu")(["a red circle"], [3])
    assert offloaded[:1] == ["cpu"]
    assert one.tobytes() == other.tobytes()
    # Images that are there are not painted again.
    assert whole.model.settings == by_turns.model.settings


def test_a_corpus_is_painted_by_turns_and_the_setting_is_free(
    tmp_path: Path,
    write_tiny_run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    offloaded: list[object],
) -> None:
    write_tiny_run(tmp_path, images={"cpu_offload": True})
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("tiny.toml"))
    run = Run(config=config, paths=RunPaths(config.run.output))
    for stage in (write_prompts, filter_prompts, make_images):
        stage(run, lambda *_: None)
    assert offloaded[:1] == ["cpu"]
    other = load_config(Path("tiny.toml"), ["images.cpu_offload=false", "evaluate.cpu_offload=true"])
    assert list(differences(config.to_tables(), other.to_tables())) == []
    assert list(identities(config)) == list(identities(other))


def plan(config: Path, *overrides: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    main([str(config), "--dry-run", "--json", *(part for one in overrides for part in ("--set", one))])
    costs: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)["model"]["costs"]
    return costs


def test_every_stage_of_the_24_gb_config_fits_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / "z-image-1k-24gb.toml"
    memory = plan(config, capsys=capsys)["gpu_memory_gb"]
    assert set(memory) == {"images", "training", "evaluation"}
    assert max(memory.values()) < 0.9 * 24
    whole = plan(config, "images.cpu_offload=false", "evaluate.cpu_offload=false", capsys=capsys)
    # The text encoder has 4.02 B parameters and the VAE 0.08 B, in bfloat16.
    for stage in ("images", "evaluation"):
        assert whole["gpu_memory_gb"][stage] - memory[stage] == pytest.approx(8.2, abs=0.11)


def test_a_source_that_is_there_is_counted_by_its_files(
    minimal_config: Path,
    untrained_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The miniature is of Z-Image's family, whose published model has 4.1 B parameters beside the trunk."""
    monkeypatch.chdir(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(untrained_source, local_files_only=True)
    weights = of_directory(untrained_source)
    assert set(weights.parts) == {"transformer", "text_encoder", "vae"}
    for name, part in weights.parts.items():
        assert part.parameters == sum(one.numel() for one in getattr(pipeline, name).parameters()), name
    files = sum(path.stat().st_size for path in untrained_source.rglob("*") if path.is_file())
    assert weights.disk_bytes == files
    counted = sum(part.parameters for part in weights.parts.values())
    assert weights.in_memory(cpu_offload=False, dtype="float32") == 4 * counted
    costs = plan(minimal_config, f"source.model={untrained_source}", capsys=capsys)
    assert costs["disk_gb"]["source"] < 0.1
    assert costs["gpu_memory_gb"]["images"] == pytest.approx(6.0, abs=0.1)
