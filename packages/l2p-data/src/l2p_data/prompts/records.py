"""Prompt records: their columns, and how they are made of bare prompts, written, read and checked."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from l2p_data.corpus.files import atomic_path, decode_text, is_file, one_line, parse_json, read_bytes, shown
from l2p_data.corpus.identity import stable_id
from l2p_data.errors import DataError, checks

PROMPT_SCHEMA: dict[str, pl.DataType] = {
    "id": pl.String(),  # stable hash of what identifies the record
    "prompt": pl.String(),
    "language": pl.String(),
    "category": pl.String(),
    "subclass": pl.String(),
    "superclass": pl.String(),
    "created_by": pl.String(),  # engine and model, "grammar:scenes"
    "problem": pl.String(),  # what was wrong with the engine's answer; null if nothing
}
_REQUIRED = [name for name in PROMPT_SCHEMA if name != "problem"]


@checks
def prompt_records(
    prompts: Sequence[str],
    *,
    created_by: str = "user",
    language: str = "en",
    category: str = "",
    subclass: str = "",
    superclass: str = "",
) -> pl.DataFrame:
    """Return records around prompts that exist already, in their order. A prompt given twice gets two ids."""
    seen: Counter[str] = Counter()
    rows = []
    for number, prompt in enumerate(prompts):
        if not prompt.isascii() and (half := prompt.encode(errors="replace").decode()) != prompt:
            raise DataError(f"prompts[{number}] is {half[:120]!r}, with half of a character where ? stands")
        row_id = stable_id(created_by, superclass, subclass, category, language, prompt, seen[prompt])
        seen[prompt] += 1
        rows.append((row_id, prompt, language, category, subclass, superclass, created_by, None))
    return pl.DataFrame(rows, schema=PROMPT_SCHEMA, orient="row")


@checks
def write_prompts(prompts: pl.DataFrame, path: str | Path) -> Path:
    """Write prompt records as Parquet, atomically. Filter columns (`status`, `reason`), if any, stay."""
    path = Path(path)
    if path.suffix != ".parquet":
        raise DataError(f"prompts cannot be written to {path}: they are Parquet; give a name in .parquet")
    check_prompts(prompts, str(path))
    with atomic_path(path) as temporary:
        prompts.write_parquet(temporary, compression="zstd")
    return path


@checks
def read_prompts(path: str | Path) -> pl.DataFrame:
    """Read prompt records from `.parquet` or `.jsonl`, or bare prompts from `.txt` (one a line) or `.csv`.

    Missing provenance columns are filled in (`created_by` = "file:NAME"), so that a user's own list of
    prompts runs through the same pipeline.

    Raises:
        DataError: the file is missing, damaged or empty, or has no column "prompt".
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(
            f"prompt file {path} does not exist; give one that ends in .parquet, .jsonl, .csv or .txt"
        )
    if path.suffix not in _READERS:
        raise DataError(f"prompt file {path} has suffix {path.suffix!r}; wanted one of {', '.join(_READERS)}")
    content = read_bytes(path)
    if not content:
        raise DataError(f"prompt file {path} is empty")
    try:
        frame = _READERS[path.suffix](content, path)
    except DataError:
        raise
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"prompt file {path} cannot be read: {one_line(error)}") from error
    except (TypeError, OverflowError) as error:  # lists of several kinds, numbers beyond 128 bits
        raise DataError(
            f"prompt file {path} cannot be read ({one_line(error, 120)}); give each name values of one kind"
        ) from error
    frame = _with_provenance(frame, path)
    check_prompts(frame, f"prompt file {path}")
    return frame


@checks
def check_prompts(prompts: pl.DataFrame, where: str = "the prompts") -> None:
    """Check columns, types, and that ids are unique and there is at least one row.

    Raises:
        DataError: naming the first fault.
    """
    missing = [name for name in _REQUIRED if name not in prompts.columns]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; it has {shown(', '.join(prompts.columns))}"
        )
    for name in _REQUIRED:
        if prompts.schema[name] != pl.String:
            raise DataError(f"{where}: column {name!r} is {prompts.schema[name]}, not text")
    if prompts.is_empty():
        raise DataError(f"{where}: there is no prompt in it")
    if prompts["id"].null_count() or prompts["id"].n_unique() < prompts.height:
        raise DataError(f"{where}: the ids are not unique; each record needs its own")


def _read_lines(content: bytes, path: Path) -> pl.DataFrame:
    lines = [line.strip() for line in decode_text(content, f"prompt file {path}").split("\n")]
    return pl.DataFrame({"prompt": [line for line in lines if line]}, schema={"prompt": pl.String()})


def _read_objects(content: bytes, path: Path) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(decode_text(content, f"prompt file {path}").split("\n"), start=1):
        if line.strip():
            row = parse_json(line, f"prompt file {path} cannot be read: line {number}")
            if not isinstance(row, dict):
                raise DataError(
                    f"prompt file {path} cannot be read: line {number} is {shown(row)}; wanted an object "
                    "with a text under 'prompt'"
                )
            if not isinstance(row.get("prompt", ""), str):
                raise DataError(
                    f"prompt file {path} cannot be read: line {number}: prompt is {shown(row['prompt'])}; "
                    "it must be a text"
                )
            rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _read_table(content: bytes, path: Path) -> pl.DataFrame:
    return pl.read_csv(decode_text(content, f"prompt file {path}").encode(), infer_schema=False)


_READERS: dict[str, Callable[[bytes, Path], pl.DataFrame]] = {
    ".parquet": lambda content, path: pl.read_parquet(content),
    ".jsonl": _read_objects,
    ".csv": _read_table,
    ".txt": _read_lines,
}


def _with_provenance(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    if "prompt" not in frame.columns:
        raise DataError(
            f"prompt file {path} has no column 'prompt'; it has {shown(', '.join(frame.columns) or 'none')}"
        )
    defaults = {
        "language": "en",
        "category": "",
        "subclass": "",
        "superclass": "",
        "created_by": f"file:{path.name}",
    }
    frame = frame.with_columns(pl.lit(v).alias(k) for k, v in defaults.items() if k not in frame.columns)
    if "problem" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias("problem"))
    if "id" not in frame.columns:
        frame = frame.unique("prompt", maintain_order=True)
        ids = [stable_id(row["created_by"], str(row["prompt"])) for row in frame.iter_rows(named=True)]
        frame = frame.with_columns(pl.Series("id", ids, dtype=pl.String))
    rest = [name for name, kind in frame.schema.items() if name not in PROMPT_SCHEMA and _has_a_place(kind)]
    return frame.select(*PROMPT_SCHEMA, *rest).with_columns(pl.col(pl.Null).cast(pl.String))


def _has_a_place(kind: Any) -> bool:
    """Return whether Parquet can hold a column of this type: of tables without a key it cannot, at any
    depth.
    """
    if isinstance(kind, pl.Struct):
        return bool(kind.fields) and all(_has_a_place(field.dtype) for field in kind.fields)
    return _has_a_place(kind.inner) if isinstance(kind, pl.List | pl.Array) else True
