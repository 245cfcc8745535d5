"""The source LDM's modules, in the sizes of the miniature and in the very directory layout of Z-Image-Turbo.

Everything is a class that the field maintains (diffusers, transformers, tokenizers); only the sizes are
small.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_mini.grammar import slots

if TYPE_CHECKING:
    from diffusers import ZImagePipeline

TEXT_DIM = 128
TRANSFORMER: dict[str, Any] = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 192,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "n_heads": 6,
    "n_kv_heads": 6,
    "cap_feat_dim": TEXT_DIM,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1024, 512, 512],
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": (16, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 64,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": TEXT_DIM,
    "intermediate_size": 256,
    "num_hidden_layers": 2,  # Z-Image reads hidden_states[-2]: the last layer only keeps the layout
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SCHEDULER: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}

SPECIAL_TOKENS = ("<|endoftext|>", "<|unk|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


def vocabulary() -> list[str]:
    """Return every token: special tokens, the words of the grammar, and the words of its templates."""
    words = {word for choices in slots().values() for phrase in choices for word in phrase.split()}
    return [*SPECIAL_TOKENS, *sorted(words | {"a", "and", "on", "background", "user", "assistant"})]


def build_tokenizer() -> Any:
    """Return a fast, lower-casing word tokenizer with a chat template; words outside the grammar become
    <|unk|>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocabulary())}, unk_token="<|unk|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|unk|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
        padding_side="right",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_text_encoder() -> Any:
    """Return the tiny Qwen3 with random weights."""
    from transformers import Qwen3Config, Qwen3Model

    tokens = vocabulary()
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokens),
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=tokens.index("<|im_end|>"),
            **TEXT_ENCODER,
        )
    )


def build_pipeline(seed: int = 0, **transformer: Any) -> ZImagePipeline:
    """Return an untrained `diffusers.ZImagePipeline`; keyword arguments replace entries of `TRANSFORMER`."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
            vae=AutoencoderKL(**VAE).eval(),
            text_encoder=build_text_encoder().eval(),
            tokenizer=build_tokenizer(),
            transformer=ZImageTransformer2DModel(**(TRANSFORMER | transformer)).eval(),
        )
        # The pad tokens are allocated uninitialised by their class; a checkpoint always brings them.
        for token in (pipeline.transformer.x_pad_token, pipeline.transformer.cap_pad_token):
            torch.nn.init.normal_(token, std=0.02)
    return pipeline


def write_untrained_source(path: Path, seed: int = 0, **transformer: Any) -> Path:
    """Write an untrained miniature source (random weights, right layout) to `path`, for tests; return the
    path."""
    build_pipeline(seed, **transformer).save_pretrained(path, safe_serialization=True)
    return path
