"""One run of one arm: surgery, training, evaluation; leaves `result.json`."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from l2p_eval.geneval import GenEvalPrompt, ImageScore, judge, summarise
from l2p_eval.layout import open_image
from l2p_eval.metrics.features import load_extractor
from l2p_eval.metrics.frechet import frechet_between
from l2p_eval.painting import default_workers, generate_images, plan_jobs
from l2p_evaluate.models import Model
from l2p_run.devices import resolve_dtype
from PIL import Image

from l2p_ablate.config import ArmTable, Config
from l2p_ablate.data import Progress

CALIBRATION_IMAGES = 64  # of the arm's corpus, for initialisations that measure the source
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the held-out loss


@dataclass(frozen=True, kw_only=True)
class Held:
    """What every arm is held against: prompts, and one picture of each."""

    prompts: Sequence[GenEvalPrompt]
    reference: Sequence[Path]


def run_arm(
    config: Config,
    arm: ArmTable,
    seed: int,
    corpus: Path,
    folder: Path,
    held: Held,
    workers: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """The result of one arm and seed; one that is there is read, an unfinished training goes on.

    Args:
        folder: the run's own (`Store.run`).
        workers: processes that train and paint; None: one per device, 0: paint in this one.
    """
    from l2p_train.run.launcher import launch

    if known := read_result(folder):
        return known
    started = time.perf_counter()
    initial = folder / "initial"
    if not (initial / "model_index.json").is_file():
        progress("surgery")
        operate(config, arm, seed, corpus, initial)
    settings = config.train_config(arm, seed=seed, model=initial, corpus=corpus, output=folder / "train")

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            progress(f"step {event['step']}/{settings.steps}, loss {event['loss']:.3f}")

    training = launch(settings, _processes(config, workers), on_event)
    metrics, tags = evaluate(config, arm, folder, held, workers, progress)
    result = {
        "run": folder.name,
        "seed": seed,
        "metrics": metrics,
        "geneval_tags": tags,
        "training": {key: value for key, value in asdict(training).items() if key != "model"},
        "curve": _curve(folder / "train" / "metrics.jsonl"),
        "seconds": round(time.perf_counter() - started, 1),  # of this session
    }
    for leftover in (folder / "train" / "checkpoints", initial):  # nothing resumes from them any more
        shutil.rmtree(leftover, ignore_errors=True)
    write_json(folder / "result.json", result)
    return result


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run left; None for one that is not finished."""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return result


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def check_arms(config: Config) -> None:
    """Builds every arm's model on the meta device, before hours are spent; `ArchError` says what is wrong."""
    from l2p_arch.model import L2PTransformer
    from l2p_arch.surgery.convert import open_source
    from l2p_arch.surgery.starts import check_initialisation

    source = open_source(config.source.model)
    trunk = {key: value for key, value in source.transformer_config.items() if not key.startswith("_")}
    for arm in config.arm:
        surgery = config.surgery_of(arm)
        images = torch.empty(1, 3, config.size, config.size)
        check_initialisation(surgery.initialisation, images, surgery.head_channels)
        with torch.device("meta"):
            L2PTransformer(source.family.name, trunk, surgery.patch_size, surgery.head_channels)


def operate(config: Config, arm: ArmTable, seed: int, corpus: Path, out: Path) -> None:
    """The pixel-space initialisation of an arm."""
    from l2p_arch.surgery.convert import convert
    from l2p_arch.surgery.starts import measures_source

    surgery = config.surgery_of(arm)
    calibrated = measures_source(surgery.initialisation)
    staging = out.with_name(f".{out.name}.partial")
    convert(
        config.source.model,
        staging,
        patch_size=surgery.patch_size,
        head_channels=surgery.head_channels,
        initialisation=surgery.initialisation,
        calibration_images=_calibration(corpus) if calibrated else None,
        seed=seed,
        overwrite=True,
    )
    if surgery.trunk == "random":
        forget_trunk(staging, seed)
    staging.rename(out)


def forget_trunk(model: Path, seed: int) -> None:
    """Replaces every inherited tensor by a random one: the same architecture, from scratch. The text encoder
    stays, as in any training from scratch."""
    from l2p_arch.model import L2PTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = L2PTransformer.from_config(L2PTransformer.load_config(model / "transformer"))
        made = L2PTransformer.from_pretrained(model / "transformer", local_files_only=True)
        fresh, kept = dict(transformer.named_parameters()), dict(made.named_parameters())
        new_ends = ("detailer_head.", f"trunk.{made.source_family.embedder}.")
        with torch.no_grad():
            for name, parameter in kept.items():
                if name.startswith(new_ends):
                    continue
                if name.endswith("pad_token"):  # allocated without values by their class
                    torch.nn.init.normal_(parameter, std=0.02)
                else:
                    parameter.copy_(fresh[name])
    made.save_pretrained(model / "transformer")


def evaluate(
    config: Config, arm: ArmTable, folder: Path, held: Held, workers: int | None, progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    """The three metrics of an arm's model, and its GenEval score per tag."""
    directory = folder / "train" / "model"
    model = Model(
        directory=directory,
        pixel=True,
        dtype=resolve_dtype("auto"),
        options={
            "height": config.size,
            "width": config.size,
            "max_sequence_length": config.source.max_sequence_length,
            **config.sampling_of(arm).model_dump(),
        },
    )
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    paths = generate_images(
        model,
        plan_jobs([prompt.prompt for prompt in held.prompts], 1, config.evaluate.seed),
        images,
        settings=model.settings,
        batch_size=config.evaluate.batch_size,
        workers=default_workers() if workers is None else workers,
        on_image=lambda done, total: progress(f"paints {done}/{total}"),
    )
    scores = _judged(held, paths)
    summary = summarise(scores)
    distance = frechet_between(held.reference, paths, load_extractor("efficientnet-lite0"))
    metrics = {
        "geneval": summary.overall,
        "frechet": distance.value,
        "loss": held_out_loss(directory, held, config.source.max_sequence_length),
    }
    return metrics, dict(summary.tags)


def _judged(held: Held, paths: Sequence[Path]) -> list[ImageScore]:
    """GenEval's verdict on one image of each held-out prompt."""
    from l2p_mini.detector import ExactDetector

    detector, scores = ExactDetector(), []
    for index, (prompt, path) in enumerate(zip(held.prompts, paths, strict=True)):
        verdict = judge(prompt, detector.detect(open_image(path)))
        scores.append(
            ImageScore(
                prompt_index=index,
                sample=0,
                tag=prompt.tag,
                prompt=prompt.prompt,
                correct=verdict.correct,
                reason=verdict.reason,
                path=path.name,
            )
        )
    return scores


@torch.inference_mode()
def held_out_loss(model: Path, held: Held, max_sequence_length: int, *, batch_size: int = 32) -> float:
    """Eq. 5 on the held-out pictures, over `SIGMAS`; the same noise for every model."""
    from l2p_arch import L2PPipeline
    from l2p_arch.sampling.initial_state import draw_noise, generators_of
    from l2p_train.objective import l2p_loss

    dtype = getattr(torch, resolve_dtype("auto"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = L2PPipeline.from_pretrained(model, dtype=dtype, local_files_only=True).to(device)
    prompts = [prompt.prompt for prompt in held.prompts]
    conditioning = pipeline.encode(prompts, max_sequence_length=max_sequence_length)
    x_0 = to_pixels([open_image(path) for path in held.reference])
    noise = draw_noise(generators_of(len(x_0), range(len(x_0))), *x_0.shape[-2:])
    total = 0.0
    for start in range(0, len(x_0), batch_size):
        part = slice(start, start + batch_size)
        for value in SIGMAS:
            pixels, sigma = x_0[part].to(device), torch.full((len(x_0[part]),), value, device=device)
            losses = l2p_loss(pipeline.transformer, pixels, noise[part].to(device), sigma, conditioning[part])
            total += float(losses.sum())
    return total / (len(x_0) * len(SIGMAS))


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images of one size as (N, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return rearrange(stacked, "n h w c -> n c h w").float() / 127.5 - 1


def _calibration(corpus: Path) -> torch.Tensor:
    """Some images of the corpus, (N, 3, H, W) in [-1, 1]."""
    from l2p_data.corpus.dataset import iterate_corpus
    from l2p_data.synthesis.images import decode_image

    rows = iterate_corpus(corpus, ["id", "image"])
    images = [decode_image(row["image"]) for row, _ in zip(rows, range(CALIBRATION_IMAGES), strict=False)]
    return to_pixels(images)


def _processes(config: Config, workers: int | None) -> int:
    wanted = config.train.get("processes", "auto")
    if wanted != "auto":
        return int(wanted)
    most = min(default_workers() if workers is None else max(workers, 1), 8)
    batch = int(config.train.get("batch_size", 8))
    return max(count for count in range(1, most + 1) if batch % count == 0)


def _curve(metrics: Path) -> list[tuple[int, float]]:
    """(step, training loss) as logged."""
    records = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # a line that a crash cut
            continue
    return [(record["step"], record["loss"]) for record in records if record.get("event") == "step"]
