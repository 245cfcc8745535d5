"""Frozen weights in 8 bit: the arithmetic, what is replaced, and parity of a run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2p_train import TrainConfig, TrainError, plan_for_model, train
from l2p_train.memory import estimate
from l2p_train.zero.quantised import LEVELS, Int8Linear, quantise_frozen
from safetensors.torch import load_file


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(-3, 3), st.integers(0, 5))
def test_every_weight_is_within_half_a_step_of_its_row(wide_in, wide_out, exponent, seed):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(wide_in, wide_out)
    linear.weight.data.mul_(10**exponent)
    small = Int8Linear(linear)
    stored = small.integers.float() * small.scale[:, None]
    # The largest weight may lie above 127 steps, by what bf16 takes off the step: 127 * 2^-9 = 1/4 step.
    assert bool(((stored - linear.weight).abs() <= 0.5001 * small.scale[:, None]).all())
    step = linear.weight.abs().amax(1) / LEVELS
    torch.testing.assert_close(small.scale, step.detach(), rtol=2**-8, atol=1e-12)


def test_output_and_gradient_are_those_of_the_stored_weights():
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 32)
    small = Int8Linear(linear)
    x = torch.randn(2, 5, 48, requires_grad=True)
    weight = small.integers.double() * small.scale.double()[:, None]
    wanted = x.double() @ weight.T + linear.bias.double()
    found = small(x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    torch.testing.assert_close(gradient.double(), 2 * wanted @ weight, rtol=1e-4, atol=1e-4)


def test_the_engines_cast_to_bf16_changes_no_weight():
    torch.manual_seed(0)
    small = Int8Linear(torch.nn.Linear(48, 32))
    integers, scale = small.integers.clone(), small.scale.clone()
    small.bfloat16()
    assert torch.equal(small.integers, integers) and small.integers.dtype == torch.int8
    assert torch.equal(small.scale.float(), scale)


def test_only_wholly_frozen_blocks_are_replaced_and_the_velocity_stays(tiny_model: Path):
    from l2p_arch import L2PTransformer

    def load():
        return L2PTransformer.from_pretrained(tiny_model / "transformer", local_files_only=True).eval()

    model, exact = load(), load()
    plan = plan_for_model(model, trainable=1)
    count = quantise_frozen(model, plan)
    replaced = [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    assert replaced and all(name.startswith("trunk.layers.1.") for name in replaced)
    linear = [m for m in exact.trunk.layers[1].modules() if isinstance(m, torch.nn.Linear)]
    assert count == sum(module.weight.numel() for module in linear) and len(replaced) == len(linear)
    assert set(plan.trainable) <= set(dict(model.named_parameters()))
    torch.manual_seed(0)
    pixels, sigma = torch.randn(2, 3, 32, 32), torch.tensor([0.3, 0.8])
    captions = [{"caption": torch.randn(5, 128)} for _ in range(2)]
    with torch.no_grad():
        a, b = model(pixels, sigma, captions), exact(pixels, sigma, captions)
    assert 0 < float((a - b).square().mean() / b.square().mean()) < 1e-4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_with_8_bit_frozen_weights_follows_the_exact_one(
    checkpointing, tiny_model, tiny_corpus, tmp_path
):
    """Parity: the same losses to 0.2 %; the exported frozen tensors are the first model's, exactly."""
    losses: dict[str, list[float]] = {}
    for kind in ("as-is", "int8"):
        config = TrainConfig(
            model=tiny_model,
            corpus=tiny_corpus,
            output=tmp_path / kind,
            steps=4,
            batch_size=4,
            trainable=1,
            learning_rate=1e-3,
            log_every=1,
            sample_every=0,
            tensorboard=False,
            frozen_weights=kind,
            gradient_checkpointing=checkpointing,
        )
        events: list[dict] = []
        result = train(config, events.append)
        losses[kind] = [event["loss"] for event in events if event["event"] == "step"]
    assert losses["int8"] != losses["as-is"]
    assert losses["int8"] == pytest.approx(losses["as-is"], rel=2e-3)
    first = load_file(next((tiny_model / "transformer").glob("*.safetensors")))
    last = load_file(next((Path(result.model) / "transformer").glob("*.safetensors")))
    frozen = [name for name in first if name.startswith("trunk.layers.1.")]
    assert frozen and first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in frozen)


@pytest.mark.parametrize("changes", [{"trainable": "lora-only"}, {"trainable": "full"}])
def test_8_bit_that_would_hold_nothing_is_refused_and_not_recommended(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, changes: dict
):
    places = {"model": tiny_model, "corpus": tiny_corpus, "output": tmp_path / "run"}
    config = TrainConfig(**places, **changes, zero_stage=1, steps=1, frozen_weights="int8")
    for refusing in (estimate, train):
        with pytest.raises(TrainError, match="every block trains or has an adapter; set it to"):
            refusing(config)
    saving = estimate(replace(config, frozen_weights="as-is")).assumptions[-1]
    assert saving.startswith("less memory: ") and "int8" not in saving
    assert ("zero_stage = 3" in saving) == (changes["trainable"] == "full")
