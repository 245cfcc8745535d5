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

GAPS_GRAMMAR = _ROOT / "gaps_grammar.toml"
"""The grammar without a colour, a shape and four pairs of both (`l2p_mini.gaps`)."""

GAPS_METADATA = _ROOT / "gaps_metadata.jsonl"
"""Prompts for what that grammar says and for what it leaves out, each with its kind."""
