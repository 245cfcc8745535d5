"""What ZeRO-3's loading leaves where; `test_processes.py` counts the shares."""

from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import L2PTransformer
from l2p_train import TrainConfig
from l2p_train.zero.engine import distributed
from l2p_train.zero.partitioned import load_partitioned
from l2p_train.zero.settings import deepspeed_config

SHARED: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
}
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {  # those whose classes register buffers
    "sd3": (
        {
            **SHARED,
            "out_channels": 4,
            "joint_attention_dim": 12,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 12,
        },
        {"trunk.pos_embed.pos_embed"},
    ),
    "pixart-sigma": (
        {**SHARED, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 12},
        {"trunk.pos_embed.pos_embed", "trunk.scale_shift_table"},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_go_to_the_device_and_keep_their_values(family: str, tmp_path: Path):
    """DeepSpeed moves parameters alone. "meta" is in the GPU's place."""
    trunk, wanted = FAMILIES[family]
    torch.manual_seed(0)
    whole = L2PTransformer(family, trunk, patch_size=4, head_channels=(8, 8))
    whole.save_pretrained(tmp_path)
    config = TrainConfig(model=tmp_path, corpus=tmp_path, output=tmp_path, zero_stage=3, batch_size=1)
    with distributed():
        settings = deepspeed_config(config, 1)
        moved = load_partitioned(tmp_path, torch.float32, settings, "meta")
        here = load_partitioned(tmp_path, torch.float32, settings, "cpu")
    assert wanted <= {name for name, buffer in moved.named_buffers() if buffer.device.type == "meta"}
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
    assert {parameter.ds_tensor.device.type for parameter in moved.parameters()} == {"cpu"}
    buffers = dict(here.named_buffers())
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer), name
