"""The held-out loss, and the checkpoint that it calls the best."""

import json
from pathlib import Path

import pytest
import torch
from l2p_train import TrainConfig, TrainError, train
from l2p_train.data.corpus import Corpus
from l2p_train.noise import shift_sigma
from l2p_train.report.samples import load_scheduler
from l2p_train.report.validation import Validation, split_rows
from l2p_train.run.checkpoint import list_checkpoints


def config(tiny_model: Path, tiny_corpus: Path, output: Path, **changes) -> TrainConfig:
    values = {
        "steps": 3,
        "batch_size": 4,
        "trainable": 1,
        "log_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 1,
        "sample_every": 0,
        "tensorboard": False,
        "precision": "fp32",
        "validation_images": 3,
    }
    return TrainConfig(model=tiny_model, corpus=tiny_corpus, output=output, **(values | changes))


def test_whole_prompts_are_held_out_whatever_the_order_of_the_shards(tiny_corpus: Path, tmp_path: Path):
    corpus = Corpus(tiny_corpus)
    training, held_out = split_rows(corpus, 3, seed=0)
    assert len(held_out) == 3 and not set(training) & set(held_out)
    prompts = {corpus.rows[row].prompt for row in held_out}
    assert not prompts & {corpus.rows[row].prompt for row in training}
    for number, path in enumerate(sorted(tiny_corpus.glob("*.parquet"), reverse=True)):
        (tmp_path / f"part-{number:05d}.parquet").write_bytes(path.read_bytes())
    turned = Corpus(tmp_path)
    again = {turned.rows[row].prompt for row in split_rows(turned, 3, seed=0)[1]}
    assert again == prompts
    assert any(split_rows(corpus, 3, seed=seed)[1] != held_out for seed in range(1, 6))
    assert split_rows(corpus, 0, seed=0) == (list(range(10)), [])
    with pytest.raises(TrainError, match="leaves nothing of the 10 images"):
        split_rows(corpus, 10, seed=0)


class NoText(dict):
    def __missing__(self, prompt):
        return {"caption": torch.zeros(2, 4)}


def test_noise_levels_are_the_quantiles_of_training_and_noise_never_changes(tiny_corpus: Path):
    settings = TrainConfig(
        model=Path("m"), corpus=tiny_corpus, output=Path("o"), batch_size=2, validation_images=3
    )
    corpus = Corpus(tiny_corpus)
    rows = split_rows(corpus, 3, seed=0)[1]

    def batches():
        made = Validation(settings, corpus, NoText(), rows=rows, patch_size=16)
        return [made.batch(part) for part, weight in made.parts if weight]

    first, second = batches(), batches()
    sigma = torch.cat([batch.sigma for batch in first])
    torch.testing.assert_close(sigma, shift_sigma((torch.arange(3) + 0.5) / 3, 3.0))
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(first, second, strict=True))


def test_the_best_checkpoint_stays_and_can_be_the_model(tiny_model, tiny_corpus, tmp_path):
    """A learning rate that ruins the model makes the first checkpoint the best."""
    settings = config(
        tiny_model, tiny_corpus, tmp_path / "run", learning_rate=0.3, export="best", gradient_clipping=0.0
    )
    events: list[dict] = []
    result = train(settings, on_event=events.append)
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "validation"}
    best = min(losses, key=losses.__getitem__)
    assert sorted(losses) == [1, 2, 3] and best != 3, losses
    kept = list_checkpoints(settings.output / "checkpoints")
    assert [one.step for one in kept] == [best, 3]
    assert [one.state["validation_loss"] for one in kept] == [losses[best], losses[3]]
    assert json.loads((Path(result.model) / "training.json").read_text())["step"] == best
    assert held_out_loss(settings, Path(result.model)) == pytest.approx(losses[best], rel=1e-5)


def held_out_loss(settings: TrainConfig, model_dir: Path) -> float:
    """Eq. 5 on the held-out images with the exported weights, without the trainer."""
    from l2p_arch import L2PTransformer
    from l2p_train.data.conditioning import ConditioningCache

    corpus = Corpus(settings.corpus)
    (folder,) = (settings.output / "conditioning").iterdir()
    rows = split_rows(corpus, 3, seed=0)[1]
    made = Validation(settings, corpus, ConditioningCache(folder), rows=rows, patch_size=16)
    model = L2PTransformer.from_pretrained(model_dir / "transformer", local_files_only=True).eval()
    errors = []
    for part, _ in made.parts:
        batch = made.batch(part)
        for index, sigma in enumerate(batch.sigma):
            x_t = (1 - sigma) * batch.x_0[index] + sigma * batch.noise[index]
            with torch.no_grad():
                velocity = model(x_t[None], sigma[None], [batch.conditioning[index]])[0]
            errors.append(float(((batch.noise[index] - batch.x_0[index] - velocity) ** 2).mean()))
    assert len(errors) == 3
    return sum(errors) / 3


def test_export_best_needs_something_to_judge_by():
    with pytest.raises(TrainError, match=r'export = "best" needs validation_images > 0'):
        TrainConfig(model=Path("m"), corpus=Path("c"), output=Path("o"), export="best")


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no file|does not exist|not found|cannot read"),
        ("{", "is not readable JSON"),
        ("[]", "names no scheduler of diffusers"),
        ('{"_class_name": "Magic"}', "names no scheduler of diffusers"),
    ],
)
def test_a_scheduler_that_is_none_is_named(content, words, tmp_path):
    (tmp_path / "scheduler").mkdir()
    if content is not None:
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(TrainError, match=words):
        load_scheduler(tmp_path)
