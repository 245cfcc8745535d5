"""CLIP and Long-CLIP scores with tiny random models of the real class, against the model's own logits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from l2p_eval.errors import EvalError
from l2p_eval.metrics.alignment import TextImageModel, alignment_of
from PIL import Image

PROMPTS = ["a photo of a cat", "a photo of a red dog", "a blue object"]


@pytest.fixture(scope="module")
def clips(
    write_clip: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return {
        "clip": write_clip(tmp_path_factory.mktemp("clip"), 77),
        "long-clip": write_clip(tmp_path_factory.mktemp("long"), 248),
    }


@pytest.mark.parametrize("kind", ["clip", "long-clip"])
def test_the_score_is_the_models_own_cosine(clips: dict[str, Path], kind: str, scenes: list[Path]) -> None:
    from transformers import CLIPModel

    model = TextImageModel(clips[kind], kind)  # type: ignore[arg-type]
    result = alignment_of(scenes[:3], PROMPTS, model, batch_size=2)
    reference = CLIPModel.from_pretrained(clips[kind]).eval()
    images = [Image.open(path).convert("RGB") for path in scenes[:3]]
    inputs = model.processor(images=images, return_tensors="pt")
    tokens = model.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = reference(
            pixel_values=inputs["pixel_values"],
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        ).logits_per_image
        expected = 100 * (logits.diagonal() / reference.logit_scale.exp()).clamp(min=0).mean()
    assert result.value == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
    assert result.name == {"clip": "CLIP", "long-clip": "Long-CLIP"}[kind]
    assert (result.count, result.positions, len(result.weights_sha256)) == (3, model.positions, 64)


def test_a_long_text_is_cut_by_clip_and_not_by_long_clip(clips: dict[str, Path], scenes: list[Path]) -> None:
    text = " ".join(["cat"] * 100)
    cuts = [
        alignment_of(scenes[:1], [text], TextImageModel(clips[kind], kind)).cut  # type: ignore[arg-type]
        for kind in ("clip", "long-clip")
    ]
    assert cuts == [1, 0]


def test_bad_models_and_pairs_are_refused(clips: dict[str, Path], scenes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="reads 77 tokens; Long-CLIP reads 248"):
        TextImageModel(clips["clip"], "long-clip")
    with pytest.raises(EvalError, match=r"no config\.json"):
        TextImageModel(tmp_path, "clip")
    with pytest.raises(EvalError, match="trust-remote-code"):
        TextImageModel(clips["long-clip"], "fg-clip")
    with pytest.raises(EvalError, match="3 images and 2 prompts"):
        alignment_of(scenes[:3], PROMPTS[:2], TextImageModel(clips["clip"], "clip"))


REMOTE_CODE = """
from transformers import CLIPModel

class Towers(CLIPModel):
    def get_text_features(self, input_ids, walk_short_pos=True):
        assert not walk_short_pos and input_ids.shape[1] == 248
        return super().get_text_features(input_ids=input_ids)
"""


def test_fg_clip_runs_the_code_beside_its_weights_once_that_is_allowed(
    write_clip: Callable[[Path, int], Path],
    tmp_path: Path,
    scenes: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = write_clip(tmp_path / "fgclip", 248)
    (model / "modeling_towers.py").write_text(REMOTE_CODE)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_towers.Towers"}
    (model / "config.json").write_text(json.dumps(config))
    loaded = TextImageModel(model, "fg-clip", trust_remote_code=True)
    assert type(loaded.network).__name__ == "Towers"
    result = alignment_of(scenes[:2], PROMPTS[:2], loaded)
    assert (result.name, result.positions) == ("FG-CLIP", 248)
    assert 0 <= result.value <= 100
