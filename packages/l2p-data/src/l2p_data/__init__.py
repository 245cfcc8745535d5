"""Prompts, filters and Ray-parallel image synthesis for a Latent-to-Pixel transfer (L2P, sec. 3.2)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2p_data.corpus.dataset import Manifest, load_manifest, read_corpus, verify
    from l2p_data.engines.chat import ChatGenerator
    from l2p_data.engines.choice import open_engine
    from l2p_data.engines.llm import Category, PromptRequest, TextGenerator
    from l2p_data.errors import DataError
    from l2p_data.filters.filtering import FilterRules, filter_prompts
    from l2p_data.prompts.generation import generate_prompts
    from l2p_data.prompts.grammar import GrammarGenerator
    from l2p_data.prompts.records import prompt_records, read_prompts, write_prompts
    from l2p_data.prompts.taxonomy import Taxonomy, load_taxonomy
    from l2p_data.synthesis.checks import CheckSettings
    from l2p_data.synthesis.config import SynthesisConfig
    from l2p_data.synthesis.synthesize import SynthesisProgress, synthesize

#: name -> module; loaded on first use, so that importing the package costs nothing
_EXPORTS = {
    "Category": "engines.llm",
    "ChatGenerator": "engines.chat",
    "CheckSettings": "synthesis.checks",
    "DataError": "errors",
    "FilterRules": "filters.filtering",
    "GrammarGenerator": "prompts.grammar",
    "Manifest": "corpus.dataset",
    "PromptRequest": "engines.llm",
    "SynthesisConfig": "synthesis.config",
    "SynthesisProgress": "synthesis.synthesize",
    "Taxonomy": "prompts.taxonomy",
    "TextGenerator": "engines.llm",
    "filter_prompts": "filters.filtering",
    "generate_prompts": "prompts.generation",
    "load_manifest": "corpus.dataset",
    "load_taxonomy": "prompts.taxonomy",
    "open_engine": "engines.choice",
    "prompt_records": "prompts.records",
    "read_corpus": "corpus.dataset",
    "read_prompts": "prompts.records",
    "synthesize": "synthesis.synthesize",
    "verify": "corpus.dataset",
    "write_prompts": "prompts.records",
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
