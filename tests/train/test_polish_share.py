"""`polish_share` trains the pass that takes off grain, and not the ones that draw the picture again."""

from pathlib import Path

import pytest
from l2p_arch import L2PTransformer
from l2p_arch.polish import GRAIN
from l2p_mini.paths import PIXEL_MODEL
from l2p_train import TrainConfig, TrainError
from l2p_train.run.surgery import SurgerySettings
from l2p_train.trainer import Session
from l2p_train.zero.engine import distributed


def settings(output: Path, corpus: Path) -> TrainConfig:
    return TrainConfig(
        model=PIXEL_MODEL,
        corpus=corpus,
        output=output,
        steps=1,
        batch_size=2,
        precision="fp32",
        zero_stage=0,
        optimizer="muon",
        polish_share=0.5,
    )


def test_the_share_has_the_first_sigma_that_takes_off_grain(tiny_corpus: Path, tmp_path: Path) -> None:
    passes = L2PTransformer.from_pretrained(PIXEL_MODEL / "transformer", local_files_only=True).polish
    assert passes[0] > GRAIN
    with distributed():
        maker = Session(settings(tmp_path, tiny_corpus)).maker
        drawn = [float(s) for step in range(40) for batch in maker.batches(step) for s in batch.sigma]
    of_passes = {sigma: sum(one == pytest.approx(sigma) for one in drawn) for sigma in passes}
    grain = next(sigma for sigma in passes if sigma <= GRAIN)
    assert 0.3 < of_passes.pop(grain) / len(drawn) < 0.7
    assert not any(of_passes.values())


def test_a_share_of_no_pass_is_refused_before_the_surgery(tiny_corpus: Path, tmp_path: Path) -> None:
    surgery = SurgerySettings(recipe="aligned", head_channels=(8, 8, 8, 8), polish=())
    with pytest.raises(TrainError, match="this model takes no grain off a finished image"):
        surgery.check(settings(tmp_path, tiny_corpus))
