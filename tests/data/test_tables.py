"""The tables of a config that say where prompts come from and how images are made; corpora that are drawn."""

from pathlib import Path
from typing import Any

import pytest
from l2p_data import read_corpus
from l2p_data.corpus.dataset import verify
from l2p_data.corpus.drawn import draw_corpus
from l2p_data.errors import DataError
from l2p_data.image_settings import ImageSettings
from l2p_data.prompt_settings import Place, PromptSettings, make_prompts
from l2p_data.prompts.records import prompt_records
from l2p_mini.paths import GRAMMAR
from PIL import Image


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "grammar"}, 'mine.engine = "grammar" needs mine.grammar'),
        ({"engine": "openai", "server": "http://x"}, 'mine.engine = "openai" needs mine.model'),
        ({"engine": "vllm"}, 'mine.engine = "vllm" needs mine.llm'),
        ({"grammar": GRAMMAR, "audit": True}, 'mine.audit needs an LLM; mine.engine is "grammar"'),
    ],
)
def test_an_engine_without_what_it_needs_is_refused_by_its_keys(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        PromptSettings(**settings).check("mine")
    assert str(error.value) == said


def test_what_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    none = tmp_path / "none"
    for settings in (
        PromptSettings(grammar=none),
        PromptSettings(engine="file", file=none),
        PromptSettings(engine="vllm", llm=none),
        PromptSettings(grammar=GRAMMAR, taxonomy=none),
    ):
        settings.check()
        with pytest.raises(DataError, match="none"):
            settings.check_files()
    PromptSettings(grammar=GRAMMAR).check_files()


def test_prompts_come_from_a_grammar_and_from_a_file_alike(tmp_path: Path) -> None:
    place = Place(journal=tmp_path / "journal")

    def made(**settings: Any) -> list[str]:
        prompts = make_prompts(PromptSettings(**settings), place, seed=3, progress=lambda *_: None)
        return list(prompts["prompt"])

    written = made(grammar=GRAMMAR, count=5)
    assert len(set(written)) == 5 and made(grammar=GRAMMAR, count=5) == written
    (tmp_path / "prompts.txt").write_text("\n".join(written))
    assert made(engine="file", file=tmp_path / "prompts.txt", count=4) == written[:4]
    assert not (tmp_path / "journal").exists()


def test_sizes_are_the_buckets_or_the_one_of_width_and_height() -> None:
    assert ImageSettings(width=96, height=64).sizes() == ((96, 64),)
    assert ImageSettings(buckets=("64x96", "80x80")).sizes() == ((64, 96), (80, 80))
    for buckets, said in (((), "images.buckets is []"), (("64", "80x80"), "images.buckets: ")):
        with pytest.raises(DataError) as error:
            ImageSettings(buckets=buckets).sizes()
        assert str(error.value).startswith(said)


def test_settings_of_images_become_those_of_a_synthesis(tmp_path: Path) -> None:
    images = ImageSettings(buckets=("64x96",), batch_size=3, seeds_per_prompt=4, workers=0)
    settings = images.synthesis(
        model=tmp_path / "m", output=tmp_path / "c", dtype="float32", pipeline_kwargs={"guidance_scale": 2.0}
    )
    assert settings.buckets == ((64, 96),)
    assert (settings.batch_size, settings.seeds_per_prompt, settings.workers) == (3, 4, 0)
    assert settings.pipeline_kwargs == {"guidance_scale": 2.0} and settings.ray_address is None


def test_a_drawn_corpus_is_whole_and_written_once(tmp_path: Path) -> None:
    drawn: list[tuple[str, int]] = []

    def draw(prompt: str, number: int) -> Image.Image:
        drawn.append((prompt, number))
        return Image.new("RGB", (32, 16), (number * 90, len(prompt), 0))

    prompts = prompt_records(["a red circle", "two blue rings"])

    def write(**settings: Any) -> None:
        draw_corpus(
            tmp_path / "corpus",
            prompts,
            draw,
            images_per_prompt=2,
            settings=settings,
            renderer="renderer:of-a-test",
            rows_per_shard=3,
        )

    write(style=1)
    assert verify(tmp_path / "corpus")["rows"] == 4
    rows = read_corpus(tmp_path / "corpus")
    assert list(zip(rows["prompt"], strict=True))[::2] == [("a red circle",), ("two blue rings",)]
    assert set(rows["width"]) == {32} and set(rows["height"]) == {16}
    assert set(rows["source_model"]) == {"renderer:of-a-test"} and rows["id"].n_unique() == 4
    assert drawn == [(prompt, number) for prompt in prompts["prompt"] for number in range(2)]
    write(style=1)
    assert len(drawn) == 4, "what is there is not drawn again"
    with pytest.raises(DataError, match="holds another corpus; choose another folder or delete it"):
        write(style=2)
