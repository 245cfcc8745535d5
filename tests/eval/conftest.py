"""Tiny random weights of the real classes, in the files in which users bring the trained ones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from l2p_eval.geneval.detectors import COLORS
from l2p_eval.geneval.random_judges import word_tokenizer
from PIL import Image


@pytest.fixture(scope="session")
def write_clip() -> Callable[[Path, int], Path]:
    """Writes a tiny CLIP whose text encoder has so many positions."""

    def write(folder: Path, positions: int) -> Path:
        from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

        words = ["a", "photo", "of", "cat", "dog", "object", *COLORS, *(f"{c}-colored" for c in COLORS)]
        tokenizer = word_tokenizer(words, positions)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        torch.manual_seed(0)
        text = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = CLIPConfig(
            text_config=sizes | text | {"max_position_embeddings": positions},
            vision_config=sizes | {"image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
        CLIPModel(config).save_pretrained(folder)
        crop = {"height": 32, "width": 32}
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP for visual question answering."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor

    tokenizer = word_tokenizer(["is", "there", "a", "dog", "red", "yes", "no"], 32)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    config = BlipConfig(
        text_config=sizes | text | {"pad_token_id": 0, "encoder_hidden_size": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
    )
    folder = tmp_path_factory.mktemp("blip")
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file as torch-fidelity reads it, with random values."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.manual_seed(0)
    before = torch.nn.Module.load_state_dict
    made: list[Any] = []

    def remember(self: Any, *arguments: Any, **options: Any) -> None:
        made.append(self)

    # Its constructor always loads; all that is wanted here is the module that it has built by then.
    torch.save({}, path)
    torch.nn.Module.load_state_dict = remember  # type: ignore[method-assign, assignment]
    try:
        FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(path))
    finally:
        torch.nn.Module.load_state_dict = before  # type: ignore[method-assign]
    torch.save(made[-1].state_dict(), path)
    return path


@pytest.fixture
def scenes(tmp_path: Path) -> list[Path]:
    """Six images of noise with a coloured square."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(6):
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        pixels[8:30, 8:30] = generator.integers(0, 255, 3)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def with_nan(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a transformers directory with its floating weights all NaN."""

    def copy(model: Path) -> Path:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "nan"
        shutil.copytree(model, folder)
        weights = load_file(folder / "model.safetensors")
        spoiled = {
            name: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
        save_file(spoiled, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy
