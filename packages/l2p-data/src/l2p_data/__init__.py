"""Prompts, filters and Ray-parallel image synthesis for a Latent-to-Pixel transfer (L2P, sec. 3.2)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2p_data.chat import ChatGenerator
    from l2p_data.checks import CheckSettings
    from l2p_data.dataset import Manifest, load_manifest, read_corpus, verify
    from l2p_data.engines import open_engine
    from l2p_data.errors import DataError
    from l2p_data.filters import FilterRules, filter_prompts
    from l2p_data.grammar import GrammarGenerator
    from l2p_data.llm import Category, PromptRequest, TextGenerator
    from l2p_data.prompts import generate_prompts, prompt_records, read_prompts, write_prompts
    from l2p_data.synthesis import SynthesisConfig, SynthesisProgress, synthesize
    from l2p_data.taxonomy import Taxonomy, load_taxonomy

#: name -> module; loaded on first use, so that importing the package costs nothing
_EXPORTS = {
    "Category": "llm",
    "ChatGenerator": "chat",
    "CheckSettings": "checks",
    "DataError": "errors",
    "FilterRules": "filters",
    "GrammarGenerator": "grammar",
    "Manifest": "dataset",
    "PromptRequest": "llm",
    "SynthesisConfig": "synthesis",
    "SynthesisProgress": "synthesis",
    "Taxonomy": "taxonomy",
    "TextGenerator": "llm",
    "filter_prompts": "filters",
    "generate_prompts": "prompts",
    "load_manifest": "dataset",
    "load_taxonomy": "taxonomy",
    "open_engine": "engines",
    "prompt_records": "prompts",
    "read_corpus": "dataset",
    "read_prompts": "prompts",
    "synthesize": "synthesis",
    "verify": "dataset",
    "write_prompts": "prompts",
}
__all__ = [
    "Category",
    "ChatGenerator",
    "CheckSettings",
    "DataError",
    "FilterRules",
    "GrammarGenerator",
    "Manifest",
    "PromptRequest",
    "SynthesisConfig",
    "SynthesisProgress",
    "Taxonomy",
    "TextGenerator",
    "filter_prompts",
    "generate_prompts",
    "load_manifest",
    "load_taxonomy",
    "open_engine",
    "prompt_records",
    "read_corpus",
    "read_prompts",
    "synthesize",
    "verify",
    "write_prompts",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
