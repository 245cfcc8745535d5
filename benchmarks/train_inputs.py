"""A model with random weights and a corpus of smooth random images, for the trainer's benchmarks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np


def write_inputs(folder: Path, *, dim: int, blocks: int, size: int, images: int = 64) -> tuple[Path, Path]:
    """Write an untrained model of patch 16 and a corpus of `size` px PNGs; return both directories."""
    from l2p_arch import convert
    from l2p_mini.architecture import write_untrained_source

    heads = dim // 32  # of 32 channels, as the rotary axes 8 + 12 + 12 want it
    source = write_untrained_source(
        folder / "source", seed=0, dim=dim, n_layers=blocks, n_heads=heads, n_kv_heads=heads
    )
    convert(source, folder / "model", patch_size=16, head_channels=(16, 32, 64, 128), seed=0)
    return folder / "model", write_corpus(folder / "corpus", size=size, images=images)


def write_corpus(folder: Path, *, size: int, images: int = 64) -> Path:
    """Write a corpus of `size` px PNGs; return its directory."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    generator, rows = np.random.default_rng(0), []
    for index in range(images):
        small = Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((size, size), Image.Resampling.BICUBIC).save(buffer, format="PNG")
        rows.append(
            {
                "id": f"image-{index:04d}",
                "prompt": f"a red circle and a blue square on a gray background {index % 8}",
                "width": size,
                "height": size,
                "image": {"bytes": buffer.getvalue(), "path": None},
            }
        )
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-00000.parquet", row_group_size=8)
    return folder
