"""Judges of the real classes and sizes with random weights: what a rehearsal judges with.

Their answers mean nothing; their time and memory are the real ones'.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2p_eval.geneval.detectors import COLORS


def write_random_detector(folder: Path, seed: int = 0) -> Path:
    """Write a Mask2Former for instances of COCO's 80 classes on a Swin-S; return `folder`."""
    import torch
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    swin = SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    labels = {number: name for number, name in enumerate(_coco_names())}
    config = Mask2FormerConfig(
        backbone_config=swin,
        use_pretrained_backbone=False,
        num_labels=len(labels),
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    torch.manual_seed(seed)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


def write_random_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP ViT-L/14 whose tokens are whole words; return `folder`."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = word_tokenizer(["a", "photo", "of", "object", *COLORS], 77)
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    }
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def _coco_names() -> list[str]:
    """Return as many names as COCO has classes; the first ones are those that a rehearsal's prompts ask
    for.
    """
    named = ["dog", "cat", "bicycle", "bench", "apple", "clock", "cup", "chair", "bird", "bus"]
    return named + [f"class {number}" for number in range(len(named), 80)]


def word_tokenizer(words: Sequence[str], positions: int) -> Any:
    """Return a fast tokenizer whose tokens are whole words, at most `positions` a text; others are <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    every = ["<pad>", "<start>", "<end>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=positions,
    )
