"""The corpus on disk: Parquet shards, their schema, import, export and a look at it."""
