"""What diffusers' own suites ask of a model of theirs, asked of ours in every family: it comes back from any
kind of disk, in any dtype, trains, averages and takes adapters.

Their mixins come with no package, so these are the same claims in our own words.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EMAModel
from diffusers.utils import constants
from l2p_arch import L2PTransformer


def velocity(tiny: Any, model: L2PTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, 8, 12, generator=generator)
    with torch.no_grad():
        return model(pixels, torch.tensor([0.2, 0.8]), tiny.samples(3, 5), return_dict=False)[0]


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "40KB"}], ids=str)
def test_a_saved_model_comes_back_the_same(
    tiny: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path, **options)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert (shards > 1) == ("max_shard_size" in options)
    variant = options.get("variant")
    wanted = velocity(tiny, model)
    assert torch.equal(velocity(tiny, model), wanted)
    again = [L2PTransformer.from_pretrained(tmp_path, variant=variant)]
    if shards > 1:
        monkeypatch.setattr(constants, "HF_ENABLE_PARALLEL_LOADING", True)
        again.append(L2PTransformer.from_pretrained(tmp_path))
    for loaded in again:
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
        # Memory that begins elsewhere may be added up in another order.
        torch.testing.assert_close(velocity(tiny, loaded), wanted, atol=5e-5, rtol=0)
    if variant:
        with pytest.raises(OSError, match="no file named"):
            L2PTransformer.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_dtype_is_kept_on_disk(tiny: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.model().to(dtype)
    model.save_pretrained(tmp_path)
    again = L2PTransformer.from_pretrained(tmp_path, dtype=dtype)
    assert again.dtype == dtype
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_attributes_are_those_of_a_diffusers_model(tiny: Any) -> None:
    model = tiny.model()
    model.own_attribute = 5
    model.register_to_config(noted=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.own_attribute == 5 and model.config.noted == 5
        assert model.save_pretrained == getattr(model, "save_pretrained")  # noqa: B009
    with pytest.warns(FutureWarning):
        assert model.noted == 5
    with pytest.raises(AttributeError, match="'L2PTransformer' object has no attribute 'nothing'"):
        _ = model.nothing


def test_an_average_of_the_weights_is_saved_and_comes_back(tiny: Any, tmp_path: Path) -> None:
    model = tiny.model()
    average = EMAModel(
        model.parameters(), decay=0.5, model_cls=L2PTransformer, model_config=model.config, foreach=False
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    average.step(model.parameters())
    average.save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, model_cls=L2PTransformer)
    for one, other in zip(again.shadow_params, average.shadow_params, strict=True):
        assert torch.equal(one, other)


def test_an_adapter_is_saved_comes_back_and_leaves_the_base_alone(tiny: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.model()
    base = velocity(tiny, model)
    linear = sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f"{block}." in name for block in model.block_names())
    )
    config = peft.LoraConfig(r=2, target_modules=linear[:4], init_lora_weights=False)
    torch.manual_seed(2)
    model.add_adapter(config)
    adapted = velocity(tiny, model)
    assert not torch.equal(adapted, base)
    model.save_lora_adapter(tmp_path)
    model.disable_lora()
    assert torch.equal(velocity(tiny, model), base)
    again = tiny.model()
    again.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(velocity(tiny, again), adapted)
    again.unload_lora()
    assert torch.equal(velocity(tiny, again), base)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_offloaded_groups_give_the_same_velocity(tiny: Any, kind: str) -> None:
    """On a CPU the groups go nowhere, but through all hooks."""
    model = tiny.model()
    wanted = velocity(tiny, model)
    here = torch.device("cpu")
    count = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(here, here, offload_type=kind, **count)
    assert torch.equal(velocity(tiny, model), wanted)
