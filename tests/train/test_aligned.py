"""An aligned model trains: its head alone, with adapters, or with outer blocks; it resumes like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PPipeline, L2PTransformer, convert, upscale
from l2p_train import TrainConfig, TrainError, plan_for_model, train
from l2p_train.memory import estimate
from safetensors.torch import load_file

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from l2p_mini.architecture import write_untrained_source

    folder = tmp_path_factory.mktemp("aligned")
    source = write_untrained_source(folder / "source", seed=0, dim=64, n_heads=2, n_kv_heads=2, n_layers=3)
    colours = torch.rand(80, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    images = torch.nn.functional.interpolate(colours, size=(32, 32), mode="bilinear")
    convert(
        source,
        folder / "model",
        recipe="aligned",
        decoder="neighbours",
        head_channels=(4, 8, 8, 8),
        calibration_images=images,
    )
    return folder / "model"


def settings(model: Path, corpus: Path, output: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "steps": 3,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "zero_stage": 0,
        "max_sequence_length": 32,
        "checkpoint_every": 0,
        "sample_every": 0,
        "tensorboard": False,
    }
    return TrainConfig(model=model, corpus=corpus, output=output, **values | changes)


def changed(before: Path, after: Path) -> set[str]:
    old, new = load_file(before / WEIGHTS), load_file(after / WEIGHTS)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_the_outer_blocks_and_the_last_layer_train_and_the_maps_stay(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    train(settings(aligned, tiny_corpus, tmp_path / "run", trainable=1))
    names = changed(aligned, tmp_path / "run/model")
    assert any(name.startswith("trunk.all_final_layer.") for name in names)
    assert any(name.startswith("trunk.layers.0.") for name in names)
    assert any(name.startswith("detailer_head.") for name in names)
    assert not any(name.startswith(("aligner.", "trunk.layers.1.")) for name in names)


def test_with_the_head_alone_no_gradient_goes_through_the_trunk(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    train(settings(aligned, tiny_corpus, tmp_path / "run", trainable="head-only"))
    assert all(name.startswith("detailer_head.") for name in changed(aligned, tmp_path / "run/model"))
    model: Any = L2PTransformer.from_pretrained(aligned / "transformer")
    chosen = set(plan_for_model(model, trainable="head-only").trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    features: list[bool] = []
    model.detailer_head.register_forward_hook(lambda _, args, __: features.append(args[1].requires_grad))
    model(torch.randn(1, 3, 32, 32), torch.tensor([0.5]), [{"caption": torch.zeros(3, 128)}])
    assert features == [False]


def test_a_frozen_trunk_saves_no_activations_in_the_plan(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    head, blocks = (
        estimate(settings(aligned, tiny_corpus, tmp_path / "run", trainable=trainable))
        for trainable in ("head-only", 1)
    )
    assert head.activations_gb < blocks.activations_gb
    assert head.optimizer_gb < blocks.optimizer_gb


def test_adapters_train_are_merged_and_load_as_diffusers_file(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    run = tmp_path / "run"
    train(settings(aligned, tiny_corpus, run, trainable="lora", lora_rank=4, lora_alpha=8))
    names = changed(aligned, run / "model")
    of_trunk = {name for name in names if name.startswith("trunk.")}
    assert of_trunk
    assert all(".attention.to_" in name for name in of_trunk)
    merged = load_file(run / "model" / WEIGHTS)
    pipeline = L2PPipeline.from_pretrained(aligned)
    pipeline.load_lora_weights(run / "model" / "lora")
    pipeline.fuse_lora()
    fused = {
        name.replace(".base_layer.", "."): value for name, value in pipeline.transformer.state_dict().items()
    }
    for name in of_trunk:
        torch.testing.assert_close(fused[name], merged[name], rtol=1e-2, atol=1e-4)
    table = json.loads((run / "freeze_table.json").read_text())
    assert any(".lora_A." in name for name in table["trainable"])


def test_adapters_that_no_layer_or_stage_can_have_are_refused(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="to_queries name no linear layer"):
        train(
            settings(aligned, tiny_corpus, tmp_path / "run", trainable="lora", lora_targets=("to_queries",))
        )
    with pytest.raises(TrainError, match="zero_stage = 3"):
        settings(aligned, tiny_corpus, tmp_path / "run", trainable="lora", zero_stage=3)


def test_a_run_resumes_to_the_same_model(aligned: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    train(settings(aligned, tiny_corpus, tmp_path / "whole", trainable=1, steps=4, ema_decay=0.9))
    train(settings(aligned, tiny_corpus, tmp_path / "parts", trainable=1, steps=2, ema_decay=0.9))
    train(settings(aligned, tiny_corpus, tmp_path / "parts", trainable=1, steps=4, ema_decay=0.9))
    whole, parts = (load_file(tmp_path / name / "model" / WEIGHTS) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_every_zero_stage_offload_and_8_bit_train_an_aligned_model_alike(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """The maps stay float32 where DeepSpeed casts, shares and moves what is around them."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "stage 2, offload": {"zero_stage": 2, "offload_optimizer": True},
        "stage 3": {"zero_stage": 3},
        "8 bit": {"frozen_weights": "int8"},
        "8 bit, stage 3": {"frozen_weights": "int8", "zero_stage": 3},
    }
    curves = {}
    for name, changes in kinds.items():
        run = tmp_path / name
        train(settings(aligned, tiny_corpus, run, trainable=1, log_every=1, precision="fp32", **changes))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curves[name] = [record["loss"] for record in records if record["event"] == "step"]
        before, after = load_file(aligned / WEIGHTS), load_file(run / "model" / WEIGHTS)
        assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("aligner."))
    for name in ("stage 2, offload", "stage 3"):
        assert curves[name] == pytest.approx(curves["plain"], rel=1e-4), name
    assert curves["8 bit"] != curves["plain"]
    assert curves["8 bit"] == pytest.approx(curves["plain"], rel=2e-2)
    assert curves["8 bit, stage 3"] == pytest.approx(curves["8 bit"], rel=1e-4)


def test_an_enlarged_model_trains_both_heads_and_exports(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    upscale(aligned, tmp_path / "large", patch_size=32)
    run = tmp_path / "run"
    train(settings(tmp_path / "large", tiny_corpus, run, trainable="head-only"))
    names = changed(tmp_path / "large", run / "model")
    assert any(name.startswith("fine_head.") for name in names)
    assert all(name.startswith(("fine_head.", "detailer_head.")) for name in names)
    pipeline = L2PPipeline.from_pretrained(run / "model")
    assert pipeline.transformer.enlargement == 2
    needs = estimate(settings(tmp_path / "large", tiny_corpus, run), height=64, width=64)
    less = estimate(settings(aligned, tiny_corpus, run), height=32, width=32)
    assert needs.image_tokens == less.image_tokens
    assert needs.activations_gb > less.activations_gb
