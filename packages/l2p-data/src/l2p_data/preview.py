"""A corpus at a glance: counts and a contact sheet."""

import textwrap
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, ImageDraw, ImageFont

from l2p_data.corpus.dataset import iterate_corpus, load_manifest, read_corpus
from l2p_data.corpus.files import atomic_path
from l2p_data.corpus.identity import digest
from l2p_data.corpus.images import decode_image
from l2p_data.corpus.schema import CORPUS_SCHEMA
from l2p_data.errors import DataError, checks

_LENGTH_BIN = 50  # characters, the bins of Fig. 2c


@checks
def corpus_stats(corpus: str | Path, *, near_duplicates: bool = False) -> dict[str, Any]:
    """Rows, failures, bytes, the distribution over the category tree (Fig. 2b), sizes, and prompt lengths
    (Fig. 2c)."""
    manifest = load_manifest(corpus)
    frame = read_corpus(corpus, [name for name in CORPUS_SCHEMA.names if name != "image"])
    sizes = Counter(f"{width}x{height}" for width, height in frame.select("width", "height").iter_rows())
    return {
        "rows": manifest.rows,
        "failed": len(manifest.failures),
        "reasons": manifest.reasons(),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "source_model": sorted(frame["source_model"].unique().to_list()),
        "size": dict(sizes.most_common()),
        **prompt_stats(frame.unique("prompt", maintain_order=True), near_duplicates=near_duplicates),
    }


@checks
def prompt_stats(prompts: pl.DataFrame, *, near_duplicates: bool = False) -> dict[str, Any]:
    """Return the numbers to report of a run: languages and tree, lengths, repetition; of judged prompts also
    what was dropped and why.

    `distinct_1`, `distinct_2`: distinct n-grams over all n-grams; low values mean that prompts repeat each
    other. `near_duplicates`: also the share of prompts that are 0.8 similar to an earlier one. What an engine
    answered without giving a prompt counts in `unusable` and nowhere else; length, tree and repetition are of
    the kept prompts where a filter has judged.
    """
    stats: dict[str, Any] = {"prompts": prompts.height}
    if "problem" in prompts.columns:
        unusable = prompts.filter(pl.col("problem").is_not_null())
        stats["unusable"] = unusable.height
        prompts = prompts.filter(pl.col("problem").is_null())
    if "status" in prompts.columns:
        keep = int((prompts["status"] == "keep").sum())
        stats["acceptance"] = round(keep / max(stats["prompts"], 1), 4)
        dropped = prompts.filter(pl.col("status") == "drop")
        stats["reasons"] = _counts(dropped, "reason") if "reason" in prompts.columns else {}
        if stats.get("unusable"):
            stats["reasons"] = {"answer": stats["unusable"], **stats["reasons"]}
        prompts = prompts.filter(pl.col("status") == "keep")
    lengths = prompts["prompt"].str.len_chars()
    counts = (lengths // _LENGTH_BIN * _LENGTH_BIN).value_counts().sort("prompt").iter_rows()
    words = prompts.select(pl.col("prompt").str.to_lowercase().str.extract_all(r"\p{Han}|[\p{L}\p{N}'’-]+"))[
        "prompt"
    ]
    bigrams = [" ".join(pair) for text in words.to_list() for pair in pairwise(text)]
    unigrams = words.explode().drop_nulls()
    stats |= {
        "language": _counts(prompts, "language"),
        "superclass": _counts(prompts, "superclass"),
        "subclass": _counts(prompts, "subclass"),
        "categories": prompts["category"].n_unique(),
        "length": {f"{start}-{start + _LENGTH_BIN - 1}": count for start, count in counts},
        "distinct_1": round(unigrams.n_unique() / max(unigrams.len(), 1), 4),
        "distinct_2": round(len(set(bigrams)) / max(len(bigrams), 1), 4),
    }
    if near_duplicates:
        from l2p_data.filters.dedup import near_duplicates as find

        repeated = find([" ".join(text) for text in words.to_list()], [True] * prompts.height)
        stats["near_duplicates"] = round(int(repeated.sum()) / max(prompts.height, 1), 4)
    return stats


@checks
def contact_sheet(
    corpus: str | Path, out: str | Path, *, columns: int = 6, rows: int = 4, cell: int = 160, seed: int = 0
) -> Path:
    """Return a PNG with `columns` x `rows` images of a corpus and their prompts; `seed` chooses which.

    Args:
        corpus: corpus directory.
        out: path of the PNG.
        columns: images per row.
        rows: rows.
        cell: px, the side of the square an image is fitted into.
        seed: another seed, another sample.
    """
    if columns < 1 or rows < 1 or cell < 16:
        raise DataError(
            f"a contact sheet of {columns}x{rows} cells of {cell} px is empty; use 1x1 and 16 px at least"
        )
    ids = read_corpus(corpus, ["id"])["id"].to_list()
    chosen = set(sorted(ids, key=lambda name: digest(seed, name))[: columns * rows])
    text_height = 46
    sheet = Image.new("RGB", (columns * (cell + 8) + 8, rows * (cell + text_height) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    shown = (row for row in iterate_corpus(corpus, ["id", "prompt", "image"]) if row["id"] in chosen)
    for index, row in enumerate(shown):
        image = decode_image(row["image"])
        scale = cell / max(image.size)
        filtering = (
            Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
        )  # keep a small image's pixels
        image = image.resize(
            (max(round(image.width * scale), 1), max(round(image.height * scale), 1)), filtering
        )
        x, y = 8 + index % columns * (cell + 8), 8 + index // columns * (cell + text_height)
        sheet.paste(image, (x, y))
        lines = textwrap.wrap(row["prompt"], width=max(cell // 5, 8), max_lines=3, placeholder=" …")
        draw.multiline_text((x, y + cell + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    out = Path(out)
    with atomic_path(out) as temporary:
        sheet.save(temporary, "PNG")
    return out


def _counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    counts = frame[column].value_counts().sort("count", column, descending=[True, False])
    return {str(name): count for name, count in counts.iter_rows()}
