"""The columns of a corpus, the contract with everything that reads one."""

import json
from pathlib import Path

import pyarrow as pa

from l2p_data.errors import DataError

CORPUS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # unique per image: prompt id and seed index
        ("prompt", pa.string()),
        ("language", pa.string()),
        ("category", pa.string()),
        ("subclass", pa.string()),
        ("superclass", pa.string()),
        ("seed", pa.int64()),  # of the image's own generator; -1 for images that no model made here
        ("width", pa.int32()),  # px
        ("height", pa.int32()),  # px
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("source_model", pa.string()),  # NAME@FINGERPRINT of the diffusers directory
        ("created_by", pa.string()),  # engine that wrote the prompt
    ],
    # Read by Hugging Face datasets: makes the struct column an image feature.
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        **{
                            name: {"dtype": "string", "_type": "Value"}
                            for name in ("id", "prompt", "language", "category", "subclass", "superclass")
                        },
                        "seed": {"dtype": "int64", "_type": "Value"},
                        "width": {"dtype": "int32", "_type": "Value"},
                        "height": {"dtype": "int32", "_type": "Value"},
                        "image": {"_type": "Image"},
                        **{
                            name: {"dtype": "string", "_type": "Value"}
                            for name in ("source_model", "created_by")
                        },
                    }
                }
            }
        )
    },
)


def check_columns(schema: pa.Schema, path: Path) -> None:
    """Check that a Parquet file has the columns and types of a corpus.

    Raises:
        DataError: naming the first fault.
    """
    missing = [name for name in CORPUS_SCHEMA.names if name not in schema.names]
    if missing:
        raise DataError(
            f"{path} is no corpus shard: no column {', '.join(missing)}; it has {', '.join(schema.names)}"
        )
    for name in CORPUS_SCHEMA.names:
        if schema.field(name).type != CORPUS_SCHEMA.field(name).type:
            wanted = CORPUS_SCHEMA.field(name).type
            raise DataError(f"{path}: column {name!r} is {schema.field(name).type}; wanted {wanted}")
