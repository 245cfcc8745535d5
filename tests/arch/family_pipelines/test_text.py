"""Every family encodes text as its own pipeline does, through the real classes with tiny random weights."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import FAMILIES, ArchError, L2PPipeline, convert

PROMPTS = ["a small red circle left of a large blue square", "two blue squares and a large red triangle"]
LENGTH = 96  # FLUX.2's and SANA's instructions come before the prompt


def encoded_by(source: Any) -> list[dict[str, torch.Tensor]]:
    """What the source's own pipeline makes of the prompts, one mapping per prompt, without padding."""
    options: dict[str, Any] = {"device": torch.device("cpu"), "max_sequence_length": LENGTH}
    name = type(source).__name__
    if name == "FluxPipeline":
        text, pooled, _ = source.encode_prompt(PROMPTS, None, **options)
        return [{"text": text[i], "pooled": pooled[i]} for i in range(2)]
    if name == "StableDiffusion3Pipeline":
        text, _, pooled, _ = source.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, **options
        )
        return [{"text": text[i], "pooled": pooled[i]} for i in range(2)]
    if name in ("Flux2Pipeline", "Flux2KleinPipeline"):
        text, _ = source.encode_prompt(PROMPTS, **options)
        return [{"text": sample} for sample in text]
    if name == "QwenImagePipeline":
        text, mask = source.encode_prompt(PROMPTS, **options)
    else:
        if name == "SanaPipeline":
            default = inspect.signature(source.__call__).parameters["complex_human_instruction"].default
            options["complex_human_instruction"] = default
        if name == "PRXPipeline":
            options["tokenizer_max_length"] = options.pop("max_sequence_length")
        text, mask, _, _ = source.encode_prompt(PROMPTS, do_classifier_free_guidance=False, **options)
    return [{"text": sample[keep.bool()]} for sample, keep in zip(text, mask, strict=True)]


def test_text_is_encoded_as_the_familys_own_pipeline_does(source: Any, tmp_path: Path) -> None:
    if source.family == "prx":
        pytest.importorskip("ftfy", reason="PRX cleans its prompts with it")
    convert(source.directory, tmp_path / "out", head_channels=(8, 8))
    for component in source.pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    with torch.no_grad():
        expected = encoded_by(source.pipeline)
    loaded = L2PPipeline.from_pretrained(tmp_path / "out")
    if source.family != "prx":  # diffusers saves no T5Gemma that it could load again
        loaded.save_pretrained(tmp_path / "again")
        loaded = L2PPipeline.from_pretrained(tmp_path / "again")
    ours = loaded.encode(PROMPTS, max_sequence_length=LENGTH)
    for actual, wanted in zip(ours, expected, strict=True):
        assert actual.keys() == wanted.keys()
        assert all(torch.equal(actual[key], wanted[key]) for key in wanted)
    first, second = (sample["text"] for sample in expected)
    assert first.shape != second.shape or not torch.equal(first, second)  # the prompts are within LENGTH


def test_a_prompt_may_be_as_long_as_in_the_familys_own_pipeline(source: Any) -> None:
    taken = inspect.signature(type(source.pipeline).__call__).parameters.get("max_sequence_length")
    if taken is None:
        assert source.family == "prx"  # whose tokenizer says it, in the file that is published
        return
    assert FAMILIES[source.family].text_tokens == taken.default


@pytest.mark.parametrize("source", ["sana", "lumina2", "pixart-sigma"], indirect=True)
def test_negative_prompts_are_encoded_as_the_familys_own_pipeline_does(source: Any, tmp_path: Path) -> None:
    convert(source.directory, tmp_path / "out", head_channels=(8, 8))
    options: dict[str, Any] = {"device": torch.device("cpu"), "max_sequence_length": LENGTH}
    if source.family == "sana":
        default = (
            inspect.signature(type(source.pipeline).__call__).parameters["complex_human_instruction"].default
        )
        options["complex_human_instruction"] = default
    for component in source.pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    with torch.no_grad():
        *_, text, mask = source.pipeline.encode_prompt(PROMPTS, True, negative_prompt=PROMPTS, **options)
    ours = L2PPipeline.from_pretrained(tmp_path / "out").encode(
        PROMPTS, max_sequence_length=LENGTH, negative=True
    )
    for actual, wanted, keep in zip(ours, text, mask, strict=True):
        assert torch.equal(actual["text"], wanted[keep.bool()])


@pytest.mark.parametrize("source", ["prx"], indirect=True)
def test_what_prx_needs_besides_is_named(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source.directory, tmp_path / "out", head_channels=(8, 8))
    monkeypatch.setattr(sys.modules["diffusers.utils"], "is_ftfy_available", lambda: False)
    with pytest.raises(ArchError, match="ftfy, which is not installed; pip install ftfy"):
        L2PPipeline.from_pretrained(tmp_path / "out").encode(PROMPTS)
