"""A source beside its L2P model: what is kept, the distance and its floor, the grids of both."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from l2p_eval.errors import EvalError
from l2p_eval.geneval import read_metadata
from l2p_eval.geneval.eyes import Eyes, check_coco_models
from l2p_eval.metrics.features import load_extractor
from l2p_eval.painting import Job, Model, generate_images, plan_jobs
from l2p_eval.source_and_l2p import AGAIN, Judges, Painted, compare, other_seeds
from l2p_mini.detector import ExactDetector
from l2p_mini.paths import EVALUATION_METADATA
from l2p_mini.pictures import render_prompt
from PIL import Image

PATCH = 16
Change = Callable[[Image.Image], Image.Image]


def with_grid(image: Image.Image) -> Image.Image:
    """Every patch a little brighter or darker than its neighbours."""
    pixels = np.asarray(image).astype(int)
    rows, columns = np.indices(pixels.shape[:2]) // PATCH
    return Image.fromarray(np.clip(pixels + 12 * ((rows + columns) % 2)[..., None], 0, 255).astype(np.uint8))


def model(title: str, change: Change = lambda image: image) -> Painted:
    """Renders what a prompt says, another scene for each seed."""

    def load(device: str) -> Any:
        return lambda prompts, seeds: [
            change(render_prompt(prompt, seed, 64)) for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    return Painted(title=title, model=Model(load=load, settings={"model": title}), sampling={"steps": 1})


def paint(painted: Painted, jobs: Sequence[Job], folder: Path) -> list[Path]:
    return generate_images(painted.model.load, jobs, folder, settings=painted.model.settings)


@pytest.fixture(scope="module")
def judges() -> Judges:
    eyes = Eyes(description="exact", detector=ExactDetector())
    return Judges(eyes=eyes, extractor=load_extractor("efficientnet-lite0"), patch_size=PATCH)


def compared(l2p: Painted, judges: Judges, folder: Path, **options: Any) -> dict[str, Any]:
    prompts = read_metadata(EVALUATION_METADATA)[::40]
    return compare(
        model("source"),
        l2p,
        judges,
        prompts,
        folder,
        paint,
        images_per_prompt=2,
        seed=5,
        progress=lambda *_: None,
        **options,
    )


def test_a_model_that_paints_as_its_source_is_below_the_floor_of_other_seeds(
    judges: Judges, tmp_path: Path
) -> None:
    results = compared(model("L2P"), judges, tmp_path)
    assert results["frechet"]["value"] < 1e-6 < results["frechet_floor"]["value"]
    assert results["frechet_floor"]["count"] == results["frechet"]["count"]
    assert results["retention"] == pytest.approx(1.0)
    source, again = (sorted((tmp_path / name).rglob("*.png")) for name in ("source", AGAIN))
    assert len(source) == len(again) > 0
    assert not {path.read_bytes() for path in source} & {path.read_bytes() for path in again}


def test_a_grid_stands_above_the_sources_own(judges: Judges, tmp_path: Path) -> None:
    grids = compared(model("L2P", with_grid), judges, tmp_path, floor=False)["patch_grid"]
    assert grids["l2p"]["name"] == f"patch-grid-{PATCH}"
    assert grids["l2p"]["value"] > 1.5 * grids["source"]["value"]
    assert not (tmp_path / AGAIN).exists()


def test_what_has_no_grid_leaves_the_other_scores(judges: Judges, tmp_path: Path) -> None:
    flat = model("L2P", lambda image: Image.new("RGB", image.size, "gray"))
    results = compared(flat, judges, tmp_path, floor=False)
    assert set(results["patch_grid"]) == {"source"}
    assert any(text.startswith("l2p: no patch grid: ") for text in results["warnings"])
    assert results["l2p"]["scores"]["overall"] < results["source"]["scores"]["overall"]


def test_other_seeds_are_the_next_ones_or_those_before() -> None:
    for seed, wanted in ((0, range(6, 12)), (2**63 - 6, range(2**63 - 12, 2**63 - 6))):
        jobs = plan_jobs(["a", "b", "a"], 2, seed)
        others = other_seeds(jobs)
        assert [job.seed for job in others] == list(wanted)
        assert [(job.prompt, job.sample) for job in others] == [(job.prompt, job.sample) for job in jobs]


def test_every_missing_judge_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    with pytest.raises(EvalError) as error:
        check_coco_models({"detector_model": None, "color_model": tmp_path / "clip"}, where="evaluate.")
    said = str(error.value)
    assert said.startswith("evaluate.detector_model is missing; evaluate.color_model ")
    assert "no transformers model directory" in said and "a CLIP (ViT-L/14)" in said
    (tmp_path / "clip" / "config.json").touch()
    check_coco_models(dict.fromkeys(("detector_model", "color_model"), tmp_path / "clip"))
