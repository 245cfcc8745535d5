"""One run of one arm: surgery, training, evaluation; leaves `result.json`."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from l2p_arch.sampling.painter import Painter
from l2p_eval import scores
from l2p_eval.geneval import GenEvalPrompt
from l2p_eval.metrics.features import load_extractor
from l2p_eval.painting import Model, Painting, default_workers, model_settings, paint
from l2p_run import places
from l2p_run.devices import choose_device, resolve_dtype
from l2p_run.settings import to_table
from l2p_train.config import TrainConfig

from l2p_ablate.config import ArmTable, Config, SurgeryTable
from l2p_ablate.errors import AblateError, NotFiniteError

Progress = Callable[[str], None]
_SEEN = 80  # images of an arm's own corpus; the smallest of Fig. 9c has no more


@dataclass(frozen=True, kw_only=True)
class Held:
    """What every arm is held against: prompts, and one picture of each."""

    prompts: Sequence[GenEvalPrompt]
    reference: Sequence[Path]
    score: Mapping[str, float]  # of those pictures, as of an arm's


def model_of(directory: Path, **options: Any) -> Model:
    """Return a model directory that paints with `options`, in this machine's own precision."""
    dtype = resolve_dtype("auto")
    return Model(
        load=Painter(directory=directory, dtype=dtype, options=options),
        settings=model_settings(directory, dtype, options),
    )


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
    """Return the result of one arm and seed; one that is there is read, an unfinished training goes on.

    Args:
        folder: the run's own (`Store.run`).
        workers: processes that train and paint; None: one per device, 0: paint in this one.

    Raises:
        NotFiniteError: a metric of the trained model is NaN or infinite.
    """
    from l2p_train.run.earlier import judge_earlier
    from l2p_train.run.launcher import launch

    if known := read_result(folder):
        return known
    started = time.perf_counter()
    initial = folder / "initial"
    settings = config.train_config(arm, seed=seed, model=initial, corpus=corpus, output=folder / "train")
    if not (initial / "model_index.json").is_file():
        progress("surgery")
        make_initial(config.source.model, initial, config.surgery_of(arm), settings)

    def on_event(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            progress(f"step {event['step']}/{settings.steps}, loss {event['loss']:.3f}")

    training = launch(settings, _processes(config, workers), on_event)
    judge = partial(evaluate, config, arm, settings, held, workers, progress)
    earlier = judge_earlier(settings, folder / "earlier", lambda *places: judge(*places)[0])
    metrics, tags = judge(folder, folder / "train" / "model")
    if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise NotFiniteError(
            f"arm {arm.name}, seed {seed}: {broken[0]} is {metrics[broken[0]]} after the training; a lower"
            f" learning rate may help, and {folder} holds what there is"
        )
    result = {
        "run": folder.name,
        "seed": seed,
        "metrics": metrics,
        "geneval_tags": tags,
        "training": {key: value for key, value in asdict(training).items() if key != "model"},
        "curve": _loss_curve(folder / "train" / "metrics.jsonl"),
        "history": [*earlier, {"step": training.steps, "metrics": metrics}],
        "seconds": round(time.perf_counter() - started, 1),  # of this session
    }
    for leftover in (folder / "train" / "checkpoints", initial):  # nothing resumes from them any more
        shutil.rmtree(leftover, ignore_errors=True)
    places.write_json(folder / "result.json", result, ensure_ascii=True)
    return result


def _loss_curve(metrics: Path) -> list[tuple[int, float]]:
    from l2p_train.report.metrics import read_metrics

    steps = [record for record in read_metrics(metrics) if record.get("event") == "step"]
    return [(record["step"], record["loss"]) for record in steps if "loss" in record]


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what a finished run left; None for one that is not finished, or whose note is damaged."""
    return places.read_json_if_whole(folder / "result.json")


def check_arms(config: Config) -> None:
    """Build every arm's model on the meta device, before hours are spent; `ArchError` or `TrainError` says
    what is wrong."""
    from l2p_arch.patchify import check_size
    from l2p_arch.surgery.source import open_source

    source = open_source(config.source.model)
    for arm in config.arm:
        surgery, where = config.surgery_of(arm), f"arm {arm.name}: "
        check_size(config.size, config.size, surgery.patch_size)
        places = {name: config.source.model for name in ("model", "corpus", "output")}  # none is looked at
        train = config.train_config(arm, seed=0, **places)
        surgery.check(train, where=where)
        if surgery.trunk == "random" and surgery.recipe == "aligned" and surgery.base is None:
            raise AblateError(
                f'{where}surgery.trunk = "random" forgets the source, on whose answers '
                'recipe = "aligned" was fitted; set surgery.recipe = "paper"'
            )
        if surgery.base is None:
            surgery.build(source)
        elif surgery.trunk == "random":
            raise AblateError(f'{where}surgery.trunk = "random" would forget surgery.base; leave one out')
        else:
            with tempfile.TemporaryDirectory() as folder:
                make_initial(config.source.model, Path(folder) / "initial", surgery, train)


def make_initial(source: Path, out: Path, surgery: SurgeryTable, train: TrainConfig) -> None:
    """Write the pixel-space initialisation of an arm."""
    from l2p_arch import upscale
    from l2p_arch.surgery.scratch import forget_trunk

    staging = out.with_name(f".{out.name}.partial")
    if surgery.base is not None:
        new = {"head_channels": surgery.head_channels, "initialisation": surgery.initialisation}
        upscale(surgery.base, staging, patch_size=surgery.patch_size, seed=train.seed, overwrite=True, **new)
    else:
        surgery.operate(source, staging, train)
    if surgery.trunk == "random":
        forget_trunk(staging, train.seed)
    staging.rename(out)


def evaluate(
    config: Config,
    arm: ArmTable,
    train: TrainConfig,
    held: Held,
    workers: int | None,
    tell: Progress,
    folder: Path,
    model: Path,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of an arm's model, painting into `folder`/images, and its GenEval score per tag."""
    from l2p_mini.detector import ExactDetector
    from l2p_train.report.held_out import held_out_loss, seen_loss

    prompts, images = [prompt.prompt for prompt in held.prompts], folder / "images"
    painter = model_of(
        model,
        height=config.size,
        width=config.size,
        max_sequence_length=config.source.max_sequence_length,
        **to_table(config.sampling_of(arm)),
    )
    shutil.rmtree(images, ignore_errors=True)
    pictures = paint(
        arm.name,
        painter,
        prompts,
        images,
        painting(config, workers),
        lambda done, total, what: tell(f"paints {done}/{total}"),
    )
    seen = scores.geneval(pictures, ExactDetector(), prompts=held.prompts, images_per_prompt=1).whole()
    distance = scores.frechet(pictures, load_extractor("efficientnet-lite0"), reference=held.reference)
    patch_size = config.surgery_of(arm).patch_size
    where = {"device": choose_device(), "dtype": resolve_dtype("auto")}
    longest = config.source.max_sequence_length
    metrics = {
        **scores.by_kind(seen),
        "frechet": distance.headline,
        "loss": held_out_loss(model, held.reference, prompts, max_sequence_length=longest, **where),
        "loss-seen": seen_loss(model, train, _SEEN, multiple=patch_size, **where),
    }
    if 1 < patch_size < config.size:  # else no border of a patch has pixels beside it
        metrics["patch-grid"] = scores.patch_grid(pictures, patch_size=patch_size).headline
    return metrics, dict(seen.details["scores"]["tags"])


def painting(config: Config, workers: int | None) -> Painting:
    """Return how held-out pictures are painted: one of each prompt, the same seeds for every model."""
    evaluation = config.evaluate
    return Painting(seed=evaluation.seed, batch_size=evaluation.batch_size, workers=workers)


def _processes(config: Config, workers: int | None) -> int:
    from l2p_train.machine.processes import processes_for

    wanted = config.train.get("processes", "auto")
    if wanted != "auto":
        return int(wanted)
    most = min(default_workers() if workers is None else max(workers, 1), 8)
    return processes_for(int(config.train.get("batch_size", 8)), most)
