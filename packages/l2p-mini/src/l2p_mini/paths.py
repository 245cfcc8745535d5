"""Where the miniature's files lie inside the installed package."""

from pathlib import Path

_ROOT = Path(__file__).parent

SOURCE_MODEL = _ROOT / "source_model"
"""The trained source LDM, in the directory layout of Z-Image-Turbo."""

PIXEL_MODEL = _ROOT / "pixel_model"
"""A trained pixel-space model made from it by the aligned recipe, which `L2PPipeline` loads."""

GRAMMAR = _ROOT / "grammar.toml"
"""The prompt grammar, for the grammar engine."""

EVALUATION_METADATA = _ROOT / "evaluation_metadata.jsonl"
"""Held-out prompts in GenEval's metadata format."""
