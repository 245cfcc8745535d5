"""The corpora that arms train on, and the held-out pictures that they are held against. Each is made once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p_eval.geneval import GenEvalPrompt, check_prompts, read_metadata
from l2p_eval.layout import image_path, write_image
from l2p_eval.painting import paint
from l2p_mini.pictures import render_prompt, restyled
from l2p_run.devices import resolve_dtype
from l2p_run.settings import to_table
from PIL import Image

from l2p_ablate.arms import Progress, model_of, painting
from l2p_ablate.config import Config, DataTable


def make_corpus(config: Config, name: str, folder: Path, workers: int | None, progress: Progress) -> Path:
    """Return the corpus `[data.NAME]`, complete; one that is there is taken as it is."""
    from l2p_data.prompts.generation import generate_prompts
    from l2p_data.prompts.grammar import GrammarGenerator

    data = config.data[name]
    prompts = generate_prompts(GrammarGenerator(data.grammar, seed=0), data.prompts, seed=0)
    if data.kind == "scenes":
        _render_corpus(prompts, data, config.size, folder)
        return folder
    from l2p_data.synthesis.config import SynthesisConfig
    from l2p_data.synthesis.synthesize import synthesize

    settings = SynthesisConfig(
        model=data.model or config.source.model,
        output=folder,
        seeds_per_prompt=data.images_per_prompt,
        width=config.size,
        height=config.size,
        batch_size=32,
        rows_per_shard=100,
        workers=workers,
        dtype=resolve_dtype("auto"),
        pipeline_kwargs=_sampling(config),
    )
    synthesize(prompts, settings, lambda state: progress(f"{state.images}/{state.total} images"))
    return folder


def _render_corpus(prompts: Any, data: DataTable, size: int, folder: Path) -> None:
    """Scenes of the miniature's own world, in which the prompts are true."""
    from l2p_data.corpus.drawn import draw_corpus

    def draw(prompt: str, number: int) -> Image.Image:
        image = render_prompt(prompt, number, size)
        return restyled(image, hue_degrees=data.hue_degrees, blur=data.blur)

    table = {key: value for key, value in to_table(data).items() if key not in ("grammar", "model")}
    draw_corpus(
        folder,
        prompts,
        draw,
        images_per_prompt=data.images_per_prompt,
        settings={"renderer": "l2p-mini scenes", **table},
        renderer="renderer:l2p-mini",
        remedy="choose another --output or delete it",
    )


# ------------------------------------------------------------------------------------------- held-out


def held_out_prompts(config: Config) -> list[GenEvalPrompt]:
    """Return the first `prompts_per_tag` prompts of each tag; raises `EvalError` where one cannot be
    judged.
    """
    from l2p_mini.detector import ExactDetector

    counts: dict[str, int] = {}
    chosen = []
    for prompt in read_metadata(config.evaluate.metadata):
        counts[prompt.tag] = counts.get(prompt.tag, 0) + 1
        if counts[prompt.tag] <= config.evaluate.prompts_per_tag:
            chosen.append(prompt)
    check_prompts(chosen, ExactDetector())
    return chosen


def make_reference(
    config: Config, prompts: Sequence[GenEvalPrompt], folder: Path, workers: int | None, progress: Progress
) -> list[Path]:
    """Return one picture of each held-out prompt: painted by the source, or rendered."""
    if config.evaluate.reference == "scenes":
        paths = [image_path(folder, index, 0) for index in range(len(prompts))]
        for index, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
            if not path.is_file():
                write_image(render_prompt(prompt.prompt, 0, config.size), folder, index, 0)
        return paths
    source = config.source
    model = model_of(source.model, height=config.size, width=config.size, **_sampling(config))
    pictures = paint(
        "the source",
        model,
        [prompt.prompt for prompt in prompts],
        folder,
        painting(config, workers),
        lambda done, total, what: progress(f"{done}/{total} reference images"),
    )
    return list(pictures.paths)


def _sampling(config: Config) -> dict[str, Any]:
    """Return how the source samples."""
    return {key: value for key, value in to_table(config.source).items() if key != "model"}
