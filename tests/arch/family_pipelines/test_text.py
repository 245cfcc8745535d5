"""Every family encodes text as its own pipeline does, through the real classes with tiny random weights."""

import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import FAMILIES, ArchError, CutPromptWarning, L2PPipeline, convert
from l2p_arch.sampling.cut_prompts import cut_prompts

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


@pytest.mark.parametrize("negative", [False, True])
def test_what_is_said_to_be_read_of_a_prompt_is_what_its_encoding_depends_on(
    source: Any, negative: bool
) -> None:
    """Words beyond the room change nothing, the last word within it does."""
    if source.family == "prx":
        pytest.importorskip("ftfy", reason="PRX cleans its prompts with it")
    family, most = FAMILIES[source.family], 80
    components = {name: getattr(source.pipeline, name) for name in family.text_components}
    for component in components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    tokenizer, room = family.text_room(components, most, negative)
    assert room > 0
    encode = (negative and family.encode_negative_text) or family.encode_text

    def encoded(prompt: str) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            [made] = encode(
                {**components, "trunk": source.pipeline.transformer},
                [prompt],
                device=torch.device("cpu"),
                max_sequence_length=most,
            )
        return {key: value for key, value in made.items() if key == family.text_key}

    def differ(first: str, second: str) -> bool:
        one, two = encoded(first), encoded(second)
        return any(one[k].shape != two[k].shape or not torch.allclose(one[k], two[k], atol=1e-5) for k in one)

    words = ["red"] * room
    assert len(tokenizer(" ".join(words), add_special_tokens=False).input_ids) == room
    whole = " ".join(words)
    assert not cut_prompts(family, components, [whole], max_sequence_length=most, negative=negative)
    [cut] = cut_prompts(
        family, components, [f"{whole} blue square"], max_sequence_length=most, negative=negative
    )
    assert (cut.tokens, cut.read, cut.lost.split()) == (room + 2, room, ["blue", "square"])
    assert not differ(f"{whole} blue square", f"{whole} green circle")
    assert differ(" ".join([*words[:-1], "blue"]) + " square", f"{whole} square")


@pytest.mark.parametrize("source", ["flux"], indirect=True)
def test_a_cut_prompt_is_warned_of_once(source: Any, tmp_path: Path) -> None:
    convert(source.directory, tmp_path / "out", head_channels=(8, 8, 8, 8))
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    long = " ".join(["red"] * 40) + " the very last words"
    with pytest.warns(CutPromptWarning, match=r"1 of 2 prompts are longer .* of which 20 are read") as caught:
        pipeline.encode([long, "a"], max_sequence_length=20)
    assert len(caught) == 1
    assert caught[0].message.cuts[0].prompt == long
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.encode([long, "a"], max_sequence_length=20)
        pipeline.encode("short enough", max_sequence_length=20)
