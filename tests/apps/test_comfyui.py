"""The ComfyUI nodes, run as ComfyUI runs them: by class, with tensors; the models are real."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from l2p_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from l2p_mini.paths import PIXEL_MODEL
from PIL import Image
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[2] / "apps" / "comfyui"


def run(name: str, **inputs: Any) -> Any:
    """What ComfyUI does with a node: the function that the class names, its first output."""
    node = NODE_CLASS_MAPPINGS[name]()
    return getattr(node, node.FUNCTION)(**inputs)[0]


def load(path: Path, **changes: Any) -> Any:
    return run(
        "L2PLoadModel", **{"path": str(path), "dtype": "float32", "cpu_offload": False, "tile": 0, **changes}
    )


def sample(model: Any, **changes: Any) -> torch.Tensor:
    given = {"prompt": "a red circle", "negative_prompt": "", "seed": 3, "images": 1, "steps": 2, **changes}
    made = run("L2PSample", model=model, **given)
    assert isinstance(made, torch.Tensor) and made.dtype == torch.float32
    return made


@pytest.fixture(scope="module")
def paper(untrained_run: Path) -> Any:
    return load(untrained_run)


@pytest.fixture(scope="module")
def aligned() -> Any:
    return load(PIXEL_MODEL)


def lora(path: Path, model: Any, scale: float) -> str:
    """A LoRA on one projection, in the layout that ComfyUI writes."""
    rows, columns = model.pipeline.transformer.state_dict()["trunk.layers.0.attention.to_q.weight"].shape
    generator = torch.Generator().manual_seed(1)
    stem = "diffusion_model.layers.0.attention.to_q"
    tensors = {
        f"{stem}.lora_A.weight": torch.randn(4, columns, generator=generator) * scale,
        f"{stem}.lora_B.weight": torch.randn(rows, 4, generator=generator) * scale,
    }
    save_file(tensors, path)
    return str(path)


def test_the_folder_is_what_comfyui_imports_from_custom_nodes() -> None:
    spec = importlib.util.spec_from_file_location("l2p_in_custom_nodes", FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
def test_a_node_takes_what_it_declares(name: str) -> None:
    import inspect

    node = NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    declared = [*inputs["required"], *inputs.get("optional", {})]
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert set(declared) == parameters.keys() - {"self"}
    assert all(parameters[each].default is not inspect.Parameter.empty for each in inputs.get("optional", {}))
    assert len(node.RETURN_TYPES) == 1 and node.CATEGORY == "L2P"
    assert NODE_DISPLAY_NAME_MAPPINGS[name]


def test_both_recipes_paint_what_the_pipeline_paints(paper: Any, aligned: Any) -> None:
    from l2p_arch.sampling.painter import paint_images

    for model in (paper, aligned):
        options = model.sampling.options | {"num_inference_steps": 2}
        wanted = paint_images(
            model.pipeline, ["a red circle"] * 2, [3, 4], negative_prompt=["", ""], **options
        )
        made = sample(model, images=2)
        assert made.shape == (2, 64, 64, 3)
        levels = (made.numpy() * 255).round().astype(np.uint8)
        assert all(np.array_equal(one, np.asarray(two)) for one, two in zip(levels, wanted, strict=True))
    tiled = sample(load(PIXEL_MODEL, tile=32))
    assert float((tiled - sample(aligned)).abs().max()) <= 1 / 255 + 1e-6


def test_a_mask_keeps_the_rest_of_the_picture_to_the_bit(paper: Any) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1, 52, 70, 3)).astype(np.float32) / 255
    picture, mask = torch.from_numpy(levels), torch.zeros(1, 52, 70)
    mask[:, 10:30, 20:40] = 1
    made = sample(paper, image=picture, mask=mask)
    assert made.shape == picture.shape
    kept = mask[..., None].expand_as(picture) == 0
    assert torch.equal(made[kept], picture[kept])
    assert not torch.equal(made, picture)
    again = sample(paper, image=picture[:, :48, :64], strength=0.0)
    assert torch.equal(again, picture[:, :48, :64])


def test_a_lora_changes_its_own_branch_only(aligned: Any, tmp_path: Path) -> None:
    before = sample(aligned)
    file = lora(tmp_path / "a.safetensors", aligned, 0.5)
    with_it = run("L2PLoadLora", model=aligned, file=file, weight=1.0)
    weaker = run("L2PLoadLora", model=aligned, file=file, weight=0.25)
    both = run("L2PLoadLora", model=with_it, file=lora(tmp_path / "b.safetensors", aligned, 0.3), weight=1.0)
    changed = [sample(each) for each in (with_it, weaker, both)]
    assert not any(torch.equal(each, before) for each in changed)
    assert len({each.numpy().tobytes() for each in changed}) == 3
    assert torch.equal(sample(aligned), before)
    assert torch.equal(sample(with_it), changed[0])


def test_comfyuis_bar_and_stop_button_are_asked_at_each_step(
    paper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI is in no package registry: two modules with its functions stand in for it."""
    told: list[tuple[int, int, Any]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            told.append((value, total, preview))

    class Stopped(Exception):
        """As ComfyUI's InterruptProcessingException."""

    def stop() -> None:
        if len(told) == 5:
            raise Stopped

    utils, management = types.ModuleType("comfy.utils"), types.ModuleType("comfy.model_management")
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = stop  # type: ignore[attr-defined]
    for name, module in (("comfy", types.ModuleType("comfy")), ("comfy.utils", utils)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "comfy.model_management", management)
    sample(paper, steps=4)
    assert [(value, total) for value, total, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    kinds = [preview and preview[0] for *_, preview in told]
    assert kinds == [None, None, "JPEG", "JPEG"]
    image = told[-1][2][1]
    assert isinstance(image, Image.Image) and image.size == (64, 64) and told[-1][2][2] == 512
    with pytest.raises(Stopped):
        sample(paper, steps=4)


def test_the_preview_is_where_a_straight_path_ends() -> None:
    from l2p_comfyui.nodes import _Watch

    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1, torch.randn(1, 3, 8, 8)
    watch, sigmas = _Watch(4), [1.0, 0.8, 0.5, 0.1, 0.0]
    previews: list[Any] = []
    watch.bar = types.SimpleNamespace(update_absolute=lambda *given: previews.append(given[2]))
    for step in range(4):
        after = sigmas[step + 1]
        watch(step, sigmas[step], (1 - after) * x_0 + after * noise)
    assert previews[:2] == [None, None]  # two states have not been passed yet
    for _, image, _ in previews[2:]:
        shown = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 255
        assert float((shown - (x_0[0] / 2 + 0.5)).abs().max()) <= 0.6 / 255


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"width": 70}, "not a multiple of patch size 16"), ({"height": 8}, "not a multiple of patch size 16")],
)
def test_a_wrong_size_is_one_line(paper: Any, changes: dict[str, int], words: str) -> None:
    from l2p_arch import ArchError

    with pytest.raises(ArchError, match=words):
        sample(paper, **changes)


def test_a_file_that_is_not_there_is_named(paper: Any, tmp_path: Path) -> None:
    from l2p_arch import ArchError

    with pytest.raises(ArchError, match=r"the LoRA .*no.safetensors does not exist"):
        run("L2PLoadLora", model=paper, file=str(tmp_path / "no.safetensors"), weight=1.0)
    with pytest.raises(ArchError, match="does not exist; give a run directory"):
        load(tmp_path / "nothing")
