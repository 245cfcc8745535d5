"""An aligned model trains: its head alone, with adapters, or with outer blocks; it resumes like any other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PPipeline, L2PTransformer, convert, upscale
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


EVERYWHERE = ("to_q", "feed_forward.w1", "trunk.layers.2.*", "trunk.all_final_layer.*", "detailer_head.*")


@pytest.fixture(scope="module")
def styled(aligned: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained nothing but adapters, on blocks, the last layer and the head."""
    pytest.importorskip("peft")
    run = tmp_path_factory.mktemp("styled") / "run"
    changes = {"trainable": "lora-only", "lora_rank": 4, "lora_alpha": 8, "lora_targets": EVERYWHERE}
    train(settings(aligned, tiny_corpus, run, **changes, learning_rate=1e-2))
    return run


def test_adapters_alone_go_where_they_are_sent_and_nothing_else_trains(aligned: Path, styled: Path) -> None:
    table = json.loads((styled / "freeze_table.json").read_text())
    assert all(".lora_A." in name or ".lora_B." in name for name in table["trainable"])
    modules = {name.partition(".lora_")[0] for name in table["trainable"]}
    assert "trunk.layers.0.attention.to_q" in modules
    assert "trunk.layers.0.attention.to_k" not in modules
    assert "trunk.layers.2.attention.to_k" in modules
    assert "detailer_head.enc1.0" in modules
    assert changed(aligned, styled / "model") == {f"{name}.weight" for name in modules}


@pytest.mark.parametrize("file", ["lora", "lora-comfyui/adapter.safetensors"])
def test_the_adapter_is_all_of_what_was_learned_and_leaves_no_trace(
    file: str, aligned: Path, styled: Path
) -> None:
    texts = [{"caption": torch.randn(6, 128, generator=torch.Generator().manual_seed(3))}]

    def painted(pipeline: L2PPipeline) -> torch.Tensor:
        size = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 1.0}
        call = pipeline(prompt_conditioning=texts, seeds=[0], output_type="latent", **size)
        return call.images

    pipeline = L2PPipeline.from_pretrained(aligned, dtype=torch.float32)
    weights = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    before = painted(pipeline)
    pipeline.load_lora_weights(styled / "model" / file)
    adapted = painted(pipeline)
    merged = painted(L2PPipeline.from_pretrained(styled / "model", dtype=torch.float32))
    assert float((adapted - before).abs().max()) > 1e-3
    torch.testing.assert_close(adapted, merged, rtol=1e-2, atol=1e-2)
    pipeline.unload_lora_weights()
    after = pipeline.transformer.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert torch.equal(painted(pipeline), before)


def test_the_layouts_name_what_other_tools_look_for(styled: Path) -> None:
    theirs = load_file(styled / "model" / "lora-comfyui" / "adapter.safetensors")
    diffusers = load_file(styled / "model" / "lora" / "pytorch_lora_weights.safetensors")
    name = "layers.0.attention.to_q.lora_A.weight"
    assert torch.equal(theirs[f"diffusion_model.{name}"], diffusers[f"transformer.trunk.{name}"])
    assert all(name.startswith("diffusion_model.") for name in theirs)
    assert len(theirs) == len(diffusers)


def test_an_adapter_of_an_aligned_model_fits_the_other_recipe_or_is_refused_in_one_line(
    aligned: Path, styled: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    paper = L2PPipeline.from_pretrained(tiny_model, dtype=torch.float32)
    before = {name: value.clone() for name, value in paper.transformer.state_dict().items()}
    with pytest.raises(ArchError, match=r"made for a model of other widths|no part here") as refused:
        paper.load_lora_weights(styled / "model" / "lora")
    assert "\n" not in str(refused.value)
    after = paper.transformer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    run = tmp_path / "blocks"
    train(settings(aligned, tiny_corpus, run, trainable="lora-only", lora_rank=2))
    for file in ("lora", "lora-comfyui/adapter.safetensors"):
        paper.load_lora_weights(run / "model" / file)
    assert len(paper.get_list_adapters()["transformer"]) == 2


def test_a_seed_decides_the_adapters_and_a_stopped_run_goes_on_to_the_same(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    def adapter(name: str, *steps: int, **changes: Any) -> dict[str, torch.Tensor]:
        values = {"trainable": "lora-only", "lora_targets": EVERYWHERE, "lora_rank": 2, **changes}
        for count in steps:
            train(settings(aligned, tiny_corpus, tmp_path / name, steps=count, **values))
        return load_file(tmp_path / name / "model" / "lora" / "pytorch_lora_weights.safetensors")

    whole, parts, other = adapter("whole", 4), adapter("parts", 2, 4), adapter("other", 4, seed=1)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not any(torch.equal(whole[name], other[name]) for name in whole)


def test_adapters_that_no_layer_or_stage_can_have_are_refused(
    aligned: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="to_queries name no linear layer"):
        train(
            settings(aligned, tiny_corpus, tmp_path / "run", trainable="lora", lora_targets=("to_queries",))
        )
    for nothing in ("trunk.layers.9.*", "detailer_head.to_q", "*.qkv"):
        with pytest.raises(TrainError, match=re.escape(f"lora_targets {nothing} name no linear layer")):
            train(
                settings(
                    aligned,
                    tiny_corpus,
                    tmp_path / "run",
                    trainable="lora-only",
                    lora_targets=("to_q", nothing),
                )
            )
    with pytest.raises(TrainError, match=r"detailer_head\.enc1\.0, which trains as a whole"):
        train(
            settings(
                aligned, tiny_corpus, tmp_path / "run", trainable="lora", lora_targets=("detailer_head.*",)
            )
        )
    for trainable in ("lora", "lora-only"):
        with pytest.raises(TrainError, match="zero_stage = 3"):
            settings(aligned, tiny_corpus, tmp_path / "run", trainable=trainable, zero_stage=3)


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
