"""A transfer is planned from plain values: no config, no weights, no corpus."""

from dataclasses import replace
from pathlib import Path

import pytest
from l2p_arch.errors import ArchError
from l2p_mini.paths import SOURCE_MODEL
from l2p_plan import Corpus, Evaluation, Machine, ModelPlan, PlanError, Source, Surgery, Transfer, plan_model
from l2p_plan.columns import ROWS, column, table
from l2p_run.sizes import Size
from l2p_train import TrainConfig

SMALL = Size(width=64, height=64)


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    """The miniature's, with nothing but its source there."""
    train = TrainConfig(
        model=tmp_path / "m", corpus=tmp_path / "c", output=tmp_path / "o", batch_size=8, steps=10
    )
    return Transfer(
        source=Source(directory=SOURCE_MODEL, max_sequence_length=32),
        corpus=Corpus(prompts=4, sizes=(SMALL,)),
        surgery=Surgery(head_channels=(16, 32, 64, 128)),
        evaluation=Evaluation(size=SMALL, source_size=SMALL),
        train=train,
    )


def test_a_plan_writes_nothing_and_counts_what_is_there(transfer: Transfer, tmp_path: Path) -> None:
    plan = plan_model(transfer)
    assert not any(tmp_path.iterdir())
    assert (plan.family, plan.counted_from) == ("z-image", "the source's config")
    assert (plan.grid, plan.tokens) == ((4, 4), 16)
    assert plan.costs.downloads == ()
    assert plan.costs.disk_gb["source"] == pytest.approx(
        sum(path.stat().st_size for path in SOURCE_MODEL.rglob("*") if path.is_file()) / 1e9, abs=1e-4
    )


def test_work_follows_the_numbers_of_images_and_steps(transfer: Transfer) -> None:
    def flop(**changes: object) -> dict[str, float]:
        return dict(plan_model(replace(transfer, **changes)).costs.flop)  # type: ignore[arg-type]

    one = flop()
    assert flop(corpus=replace(transfer.corpus, prompts=12))["images"] == 3 * one["images"]
    assert flop(train=replace(transfer.train, steps=30))["training"] == 3 * one["training"]
    twice = flop(evaluation=replace(transfer.evaluation, images_per_prompt=8))
    assert twice["evaluation"] == 2 * one["evaluation"] and twice["images"] == one["images"]


def test_every_pass_over_a_finished_image_is_counted(transfer: Transfer) -> None:
    def evaluation(polish: tuple[float, ...]) -> float:
        surgery = replace(transfer.surgery, recipe="aligned", polish=polish)
        return float(plan_model(replace(transfer, surgery=surgery)).costs.flop["evaluation"])

    none, one, five = (evaluation((0.2,) * count) for count in (0, 1, 5))
    assert five - none == pytest.approx(5 * (one - none)) and one > none


def test_a_resized_training_is_counted_at_its_own_largest_size(transfer: Transfer) -> None:
    sizes = (Size(width=128, height=64), Size(width=96, height=96))
    plan = plan_model(replace(transfer, trained_sizes=sizes))
    assert plan.grid == (6, 6)


def test_a_source_that_is_not_there_needs_a_family(transfer: Transfer, tmp_path: Path) -> None:
    gone = replace(transfer, source=Source(directory=tmp_path / "none"))
    with pytest.raises(PlanError, match="no family says what it would be"):
        plan_model(gone)
    with pytest.raises(ArchError, match="z-imag"):
        plan_model(replace(transfer, source=Source(directory=tmp_path / "none", family="z-imag")))


def test_an_unknown_gpu_is_refused_with_the_known_ones(transfer: Transfer) -> None:
    with pytest.raises(PlanError, match="abacus is not known; there is B200"):
        plan_model(transfer, Machine(gpu="abacus"))


def test_columns_stand_side_by_side(transfer: Transfer) -> None:
    plan: ModelPlan = plan_model(transfer)
    cells = column(transfer, plan)
    lines = table([("one", cells), ("one", cells)]).splitlines()
    assert len(lines) == len(ROWS) + 2 and lines[0] == "|  | one | one |"
    assert all(line.count("|") == 4 for line in lines)
