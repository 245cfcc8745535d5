"""--dry-run plans the real models at their full size before anything is downloaded."""

import json
from pathlib import Path

import pytest
from l2p_plan import Costs, ModelPlan
from l2p_plan.columns import ROWS, column
from l2p_transfer.cli import main
from l2p_transfer.config import load_config
from l2p_transfer.planning.described import describe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.mark.parametrize(
    ("name", "repository", "billions"),
    [
        ("z-image-1k", "Tongyi-MAI/Z-Image-Turbo", 6.15),
        ("flux-1k", "black-forest-labs/FLUX.1-dev", 11.90),
        ("qwen-image-1k", "Qwen/Qwen-Image", 20.43),
        ("z-image-4k", "Tongyi-MAI/Z-Image", 6.15),
        ("sd3.5-1k", "stabilityai/stable-diffusion-3.5-large", 8.06),
    ],
)
def test_a_real_model_is_planned_at_its_published_size(
    name: str,
    repository: str,
    billions: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import diffusers
    import torch
    from l2p_arch.families import FAMILIES
    from l2p_arch.families.facts import full_transformer_config

    monkeypatch.chdir(tmp_path)
    assert main([str(CONFIGS / f"{name}.toml"), "--dry-run", "--json"]) == 2  # the weights are not here
    out, err = capsys.readouterr()
    assert "source.model" in err
    plan = json.loads(out)
    model, costs = plan["model"], plan["model"]["costs"]
    family = FAMILIES[model["family"]]
    with torch.device("meta"):
        config = full_transformer_config(family.name, family.transformer_class)
        source = getattr(diffusers, family.transformer_class).from_config(config)
    assert round(sum(p.numel() for p in source.parameters()) / 1e9, 2) == billions
    assert model["tokens"] == 4096
    assert 0 < model["trainable"] < model["frozen"] * 2
    assert costs["downloads"][0].startswith(f"hf download {repository} --local-dir ")
    judges = [line for line in costs["downloads"] if "mask2former" in line or "clip-vit-large" in line]
    assert len(judges) == 2 and all(line.startswith("hf download ") for line in judges)
    assert "evaluation_metadata.jsonl" in costs["downloads"][-1]
    assert set(costs["gpu_hours"]) == {"images", "training", "evaluation"}
    # A forward is about 2 FLOPs per parameter and token; two-stream families run half of theirs on the text.
    step = costs["gpu_hours"]["training"] * 3600 * 0.4 * 989.4e12 / (100_000 * 8)
    assert 1 < step / (2 * billions * 1e9 * 4096) < 8
    assert costs["disk_gb"]["source"] > 2 * billions
    assert not any(tmp_path.iterdir())
    shown = {line.split("|")[1].strip(): line for line in _costs_page() if line.startswith("| ")}
    transfer = describe(load_config(CONFIGS / f"{name}.toml"))
    cells = column(transfer, ModelPlan(**{**model, "costs": Costs(**costs)}))
    if name.endswith("-1k"):
        for row, cell in zip(ROWS, cells, strict=True):
            assert f"| {cell} |" in shown[row], f"docs/costs.md, {row}: print the table again"


def _costs_page() -> list[str]:
    return (ROOT / "docs" / "costs.md").read_text(encoding="utf-8").splitlines()


def test_a_plan_at_4096_px_counts_the_trained_size_and_the_source_at_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plans = []
    for extra in ([], ["--set", "train.resolution=2048"]):
        main([str(CONFIGS / "z-image-4k.toml"), "--dry-run", "--json", *extra])
        plans.append(json.loads(capsys.readouterr().out))
    full, half = (plan["model"] for plan in plans)
    assert (full["grid"], half["grid"]) == ([64, 64], [32, 32])
    for name in ("l2p", "step"):
        assert full["costs"]["tflop"][name] > 3 * half["costs"]["tflop"][name]
    assert full["costs"]["tflop"]["source"] == half["costs"]["tflop"]["source"]
    assert full["memory_gb"] > half["memory_gb"]
    work = {stage["title"]: stage["work"] for stage in plans[0]["stages"]}
    assert work["Images from the source"] == "20,000 images of 1024x1024 px"
    assert work["Training"] == "100,000 steps of 8 images, resized to 4096x4096 px"
    assert work["Evaluation"] == "1 image a prompt, 4096x4096 px; of the source 1024x1024 px"


def test_one_gpu_is_said_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    for processes, gpus in ((1, "on 1 GPU  "), (8, "on 8 GPUs ")):
        main([str(CONFIGS / "z-image-1k.toml"), "--dry-run", "--set", f"train.processes={processes}"])
        assert f"\n{gpus}" in capsys.readouterr().out


@pytest.mark.parametrize(("rate", "said"), [(0.6, "0.6"), (0.043, "0.043"), (9.64, "9.6"), (1234.5, "1,234")])
def test_a_slow_training_has_a_rate(rate: float, said: str) -> None:
    from l2p_run import words

    assert words.rate(rate) == said


def test_hours_follow_the_stated_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    hours = []
    for flags in (["--gpu", "H100"], ["--gpu", "A100"], ["--gpu", "A100", "--utilisation", "0.2"]):
        main([str(CONFIGS / "z-image-1k.toml"), "--dry-run", "--json", *flags])
        hours.append(json.loads(capsys.readouterr().out)["model"]["costs"]["gpu_hours"]["training"])
    assert hours[1] / hours[0] == pytest.approx(989.4 / 312, rel=1e-3)
    assert hours[2] / hours[1] == pytest.approx(2, rel=1e-3)
    assert main([str(CONFIGS / "z-image-1k.toml"), "--dry-run", "--gpu", "abacus"]) == 2
    assert "--gpu abacus is not known" in capsys.readouterr().err
    for share in ("0", "35"):
        with pytest.raises(SystemExit):
            main([str(CONFIGS / "z-image-1k.toml"), "--dry-run", "--utilisation", share])
        assert "it must be above 0 and at most 1" in capsys.readouterr().err
