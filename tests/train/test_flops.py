"""FLOP counts against closed forms, and utilisation in the log."""

import json
from pathlib import Path

import pytest
import torch
from l2p_run.sizes import Size
from l2p_train import TrainConfig, plan_for_model, train
from l2p_train.flops import training_flops
from l2p_train.memory import meta_model


def flops(model: Path, trainable: str | int, caption: torch.Tensor, side: int):
    config = TrainConfig(model=model, corpus=Path("c"), output=Path("o"), trainable=trainable)
    plan = plan_for_model(meta_model(config)[0], trainable=trainable)
    return training_flops(config, plan, Size(side, side), {"caption": caption})


def test_a_block_of_z_image_at_1k_costs_what_its_matrices_and_its_attention_say(z_image, tmp_path):
    """2 FLOPs per weight and token, and 4 T^2 D for the attention; counted as a difference of two depths."""
    counts = []
    for depth in (1, 3):
        config = json.loads((z_image / "transformer" / "config.json").read_text())
        config["trunk_config"]["n_layers"] = depth
        folder = tmp_path / str(depth)
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer" / "config.json").write_text(json.dumps(config))
        counts.append(flops(folder, "full", torch.empty(224, 2560), 1024))
    tokens, width = 4096 + 224, 3840
    modulation = 4 * width * 256  # its matrix works once per image
    matrices = 4 * width**2 + 3 * width * (width // 3 * 8)  # attention, and SwiGLU of 8/3 the width
    block = 2 * (matrices * tokens + modulation) + 4 * tokens**2 * width
    assert counts[1].forward - counts[0].forward == pytest.approx(2 * block, rel=1e-6)
    assert counts[1].step - counts[0].step == pytest.approx(6 * block, rel=1e-6)


def test_a_frozen_block_saves_exactly_its_weights_gradients(tiny_model: Path):
    """One product per weight and token less, of three: where '0.78 at 10 of 30 blocks' comes from."""
    caption = torch.empty(7, 128)
    partly, everything = (flops(tiny_model, trainable, caption, 32) for trainable in (1, "full"))
    assert partly.forward == everything.forward
    model, _ = meta_model(TrainConfig(model=tiny_model, corpus=Path("c"), output=Path("o")))
    matrices = {
        name: module.weight.numel()
        for name, module in model.trunk.layers[1].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    modulation = sum(size for name, size in matrices.items() if "adaLN" in name)  # once per image
    tokens = 32 + 32  # image and caption, padded
    wanted = 2 * ((sum(matrices.values()) - modulation) * tokens + modulation)
    assert everything.step - partly.step == wanted
    # Three forwards, less the gradients that pixels and captions do not need.
    assert 2.8 < everything.step / everything.forward < 3


def test_the_log_reports_flops_utilisation_and_the_loaders_share(tiny_model, tiny_corpus, tmp_path):
    steps: list[dict] = []
    config = TrainConfig(
        model=tiny_model,
        corpus=tiny_corpus,
        output=tmp_path,
        steps=2,
        batch_size=4,
        trainable=1,
        log_every=1,
        sample_every=0,
        tensorboard=False,
        peak_tflops=0.5,
    )
    train(config, lambda event: steps.append(dict(event)) if event["event"] == "step" else None)
    step = steps[-1]
    per_image = step["tflops"] * 1e12 * step["seconds_per_step"] / 4
    (folder,) = (tmp_path / "conditioning").iterdir()
    from l2p_train.data.conditioning import ConditioningCache
    from l2p_train.data.corpus import Corpus

    caption = ConditioningCache(folder)[Corpus(tiny_corpus).rows[0].prompt]["caption"]
    assert per_image == pytest.approx(flops(tiny_model, 1, caption, 32).step, rel=0.02)
    assert step["mfu"] == pytest.approx(step["tflops"] / 0.5, rel=0.02)
    assert 0 <= step["loader_share"] < 1
