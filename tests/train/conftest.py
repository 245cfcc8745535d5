"""A tiny model directory and corpus that the trainer's tests share."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

SIZE = 32  # px
PROMPTS = [
    f"a {color} {shape} on a gray background" for color in ("red", "blue") for shape in ("circle", "square")
]

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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums as in the processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model directory: three blocks, so that with n = 1 the middle one is frozen."""
    from l2p_arch import convert
    from l2p_mini.architecture import write_untrained_source

    folder = tmp_path_factory.mktemp("tiny")
    source = write_untrained_source(folder / "source", seed=0, dim=64, n_heads=2, n_kv_heads=2, n_layers=3)
    convert(
        source,
        folder / "model",
        patch_size=16,
        head_channels=(4, 8, 8, 8),
        seed=0,
        initialisation="default",
    )
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with ten smooth random images."""
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(2):
        _write_shard(folder / f"part-{shard:05d}.parquet", [(SIZE, SIZE)] * 5, seed=shard)
    return folder


def _write_shard(path: Path, sizes: list[tuple[int, int]], seed: int = 0) -> None:
    """Write a corpus shard with one image per (height, width)."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    rows = []
    for number, (height, width) in enumerate(sizes):
        small = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((width, height), Image.Resampling.BILINEAR).save(buffer, format="PNG")
        rows.append(
            {
                "id": f"{path.stem}-{number}",
                "prompt": PROMPTS[number % len(PROMPTS)],
                "seed": number,
                "width": width,
                "height": height,
                "image": {"bytes": buffer.getvalue(), "path": None},
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


@pytest.fixture(scope="session")
def write_shard():
    """The function (path, [(height, width), ...], seed=0) -> None that writes a corpus shard."""
    return _write_shard


@pytest.fixture(scope="session")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with the full-size Z-Image's config and no weights."""
    folder = tmp_path_factory.mktemp("z-image")
    (folder / "transformer").mkdir()
    config = {"_class_name": "L2PTransformer", "family": "z-image", "trunk_config": Z_IMAGE}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head carries the text's part of the features, which PyTorch's own start loses."""
    from l2p_arch import convert
    from l2p_mini.architecture import write_untrained_source

    folder = tmp_path_factory.mktemp("start")
    source = write_untrained_source(folder / "source", seed=0, dim=64, n_heads=2, n_kv_heads=2, n_layers=3)
    convert(source, folder / "model", head_channels=(8, 8, 8, 8), initialisation="kaiming")
    return folder / "model"
