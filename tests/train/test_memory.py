"""The estimate of --dry-run against measured values for Z-Image (6.166 B parameters, 1024 px)."""

import json
from pathlib import Path

import pytest
from l2p_train import TrainConfig, estimate

# GB per GPU on 8 GPUs for weights + gradients + Adam, 1.82 B trainable, by ZeRO stage.
MEASURED = {0: 37.8, 1: 18.7, 2: 15.5, 3: 4.7}
Z_IMAGE = {
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("z-image")
    (folder / "transformer").mkdir()
    config = {"_class_name": "L2PTransformer", "family": "z-image", "trunk_config": Z_IMAGE}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


def test_states_agree_with_the_measured_stages_and_activations(z_image: Path):
    for stage, measured in MEASURED.items():
        config = TrainConfig(
            model=z_image,
            corpus=Path("c"),
            output=Path("o"),
            zero_stage=stage,
            resolution=1024,
            freeze_patterns=("trunk.*refiner*", "trunk.*pad_token", "trunk.*_embedder.*"),
        )
        found = estimate(config, processes=8)
        states = found.weights_gb + found.gradients_gb + found.optimizer_gb
        assert found.plan.trainable_count / 1e9 == pytest.approx(1.82, abs=0.01)
        assert states == pytest.approx(measured, rel=0.01), stage
        if stage == 0:
            # Measured: 10 trainable blocks of 1.50 GB, 20 frozen of 1.01 GB, and 1.94 GB for the head.
            assert found.tokens == 4352
            assert found.activations_gb == pytest.approx(10 * 1.50 + 20 * 1.01 + 1.94, rel=0.05)
            assert "trunk.layers.5 ... 24" in found.text()


def test_offload_takes_the_optimizer_off_the_gpu(z_image: Path):
    def total(**changes) -> float:
        config = TrainConfig(
            model=z_image, corpus=Path("c"), output=Path("o"), resolution=1024, batch_size=1, **changes
        )
        return estimate(config).total_gb

    assert total() - total(offload_optimizer=True) == pytest.approx(2.548 * 12, rel=0.01)
    assert total(gradient_checkpointing=True, offload_optimizer=True) < 24
