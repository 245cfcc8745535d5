"""Prompts that are longer than the text encoder takes are counted, with what they lost."""

from pathlib import Path

import pytest
from l2p_data import SynthesisConfig, commands, load_manifest, prompt_records, synthesize, write_prompts

LONG = " ".join(f"circle {number} is red," for number in range(40)) + " and the last is golden"
SHORT = "a red circle"


def test_a_synthesis_says_how_many_prompts_were_cut_and_the_first_words_that_were_lost(
    untrained_source: Path, tmp_path: Path
) -> None:
    options = {"num_inference_steps": 1, "guidance_scale": 0.0, "max_sequence_length": 32}
    config = SynthesisConfig(
        model=untrained_source,
        output=tmp_path / "c",
        seeds_per_prompt=2,
        width=64,
        height=64,
        batch_size=3,
        rows_per_shard=4,
        workers=0,
        pipeline_kwargs=options,
    )
    prompts = [SHORT, LONG, "circle 0 is red,", LONG.replace("circle", "square")]
    write_prompts(prompt_records(prompts), tmp_path / "p.parquet")
    summary = commands.synthesize(tmp_path / "p.parquet", config)
    assert summary["rows"] == 8 and summary["cut_prompts"] == 2
    lost = summary["cut_from"]
    assert lost and len(lost.split()) <= 8 and lost.split()[-1].strip(",. ") in LONG
    assert len(load_manifest(tmp_path / "c").cut_prompts) == 2
    again = synthesize(prompt_records(prompts), config)  # from the ledger
    assert len(again.cut_prompts) == 2
    other = SynthesisConfig(**{**vars(config), "output": tmp_path / "d"})
    assert not synthesize(prompt_records([SHORT]), other).cut_prompts


def test_a_short_encoder_beside_a_long_one_is_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from l2p_data.synthesis.long_prompts import LongPrompts

    class Words:
        """A tokenizer that counts words."""

        def __init__(self, most: int) -> None:
            self.model_max_length = most

        def __call__(self, text: str | list[str], **options: object) -> dict[str, object]:
            texts = [text] if isinstance(text, str) else text
            numbers = [[hash(word) for word in one.split()] for one in texts]
            self.words = {hash(word): word for one in texts for word in one.split()}
            if options.get("truncation"):
                numbers = [one[: int(options.get("max_length") or self.model_max_length)] for one in numbers]  # type: ignore[call-overload]
            return {"input_ids": numbers[0] if isinstance(text, str) else numbers}

        def num_special_tokens_to_add(self) -> int:
            return 0

        def decode(self, numbers: list[int], **options: object) -> str:
            return " ".join(self.words[number] for number in numbers)

    clip, t5 = Words(4), Words(9)
    watched = LongPrompts()
    watched.watch(SimpleNamespace(components={"tokenizer": clip, "tokenizer_2": t5, "vae": object()}))
    middle, long = "a b c d e f", "a b c d e f g h i j k"
    for tokenizer in (clip, t5):
        result = tokenizer([f"<user> {middle}", f"<user> {long}"], truncation=True)
        assert len(result["input_ids"][1]) == tokenizer.model_max_length  # type: ignore[index]
    found = watched.of([middle, long, "b c"])
    assert list(found.values()) == ["i j k"] and isinstance(clip, Words)
    assert watched.of([middle, long]) == {}
