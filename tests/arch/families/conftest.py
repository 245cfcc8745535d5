"""A tiny transformer of every family; the fixture `tiny` goes through all of them."""

from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from l2p_arch import FAMILIES, L2PTransformer
from l2p_arch.surgery.aligned import name_in_trunk
from torch import Tensor, nn

Sample = dict[str, Tensor]


def with_no_weight_at_zero(model: nn.Module) -> Any:
    """Some classes begin with gates at zero, behind which a wrong block would go unseen."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """One tiny source; its text is 12 wide."""

    name: str
    """The family, and what is special about it."""
    config: dict[str, Any]
    pooled: int = 0
    """Width of the pooled text, for families that take one."""
    guidance: float | None = None
    family: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", FAMILIES[self.name.split()[0]])

    def source(self) -> Any:
        """diffusers' transformer."""
        torch.manual_seed(0)
        return with_no_weight_at_zero(getattr(diffusers, self.family.transformer_class)(**self.config))

    def trunk(self, source: Any) -> Any:
        """Our trunk, on latent patches: blocks as surgery takes them over, and the source's own embedder."""
        layout = self.family.latent_embedder(source.config)
        tensors = source.state_dict()
        is_end = self.family.source_format.is_end
        state = {key: value for key, value in tensors.items() if not is_end(key)}
        weight = tensors[f"{layout.name}.weight"].flatten(1)
        trunk = self.family.build_trunk(source.config, weight.shape[1]).eval()
        wanted = trunk.state_dict()[f"{self.family.embedder}.weight"].shape
        state[f"{self.family.embedder}.weight"] = weight.reshape(wanted)
        if f"{layout.name}.bias" in tensors:
            state[f"{self.family.embedder}.bias"] = tensors[f"{layout.name}.bias"]
        trunk.load_state_dict(state)
        return trunk

    def whole_trunk(self, source: Any) -> Any:
        """Our trunk of the aligned recipe, with the source's last layer."""
        trunk = self.family.build_whole_trunk(source.config).eval()
        wanted = trunk.state_dict()
        state = {}
        for name, value in source.state_dict().items():
            own = name_in_trunk(self.family, source.config, name)
            if own is not None:
                state[own] = value.reshape(wanted[own].shape)
        trunk.load_state_dict(state)
        return trunk

    def aligned_model(self) -> L2PTransformer:
        """A model of the aligned recipe with patches of 4 px, whose subspace is some rotation."""
        torch.manual_seed(0)
        alignment = {"version": 1, "decoder_kernel": 3, "filter_sigmas": 3}
        source = self.source()
        model = L2PTransformer(
            self.family.name,
            {key: value for key, value in source.config.items() if not key.startswith("_")},
            patch_size=4,
            head_channels=(8, 8),
            prediction="x_0",
            alignment=alignment,
        )
        model.trunk = self.whole_trunk(source)
        aligner: Any = model.aligner
        aligner.subspace.copy_(torch.linalg.qr(torch.randn_like(aligner.subspace)).Q)
        aligner.scale.fill_(1.7)
        for name in ("pixel_mean", "latent_mean", "decoder", "filters"):
            getattr(aligner, name).normal_(std=0.2)
        aligner.filter_sigmas.copy_(torch.tensor([0.01, 0.4, 1.0]))
        return model.eval()

    def model(self) -> L2PTransformer:
        """A pixel-space model with patches of 4 px."""
        torch.manual_seed(0)
        return with_no_weight_at_zero(
            L2PTransformer(self.family.name, self.config, patch_size=4, head_channels=(8, 8))
        )

    def samples(self, *lengths: int) -> list[Sample]:
        """The conditioning of one sample per length of text."""
        generator = torch.Generator().manual_seed(5)
        made = []
        for length in lengths:
            sample = {"text": torch.randn(length, 12, generator=generator)}
            if self.pooled:
                sample["pooled"] = torch.randn(self.pooled, generator=generator)
            if self.guidance is not None:
                sample["guidance"] = torch.tensor(self.guidance)
            made.append(sample)
        return made


HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
IMAGES: dict[str, Any] = {"sample_size": 16, "patch_size": 2, "in_channels": 4}
FLUX: dict[str, Any] = {
    **HEADS,
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": [4, 6, 6],
}
CROSS: dict[str, Any] = {"num_layers": 2, "cross_attention_dim": 32, "caption_channels": 12}
ALL = [
    Tiny(name="flux", config={**FLUX, "guidance_embeds": False}, pooled=10),
    Tiny(name="flux with guidance", config={**FLUX, "guidance_embeds": True}, pooled=10, guidance=4.0),
    Tiny(
        name="qwen-image",
        config={
            **HEADS,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": [4, 6, 6],
        },
    ),
    Tiny(
        name="sd3",
        config={
            **HEADS,
            **IMAGES,
            "out_channels": 4,
            "num_layers": 3,
            "joint_attention_dim": 12,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 12,
            "dual_attention_layers": [0],
            "qk_norm": "rms_norm",
        },
        pooled=10,
    ),
    Tiny(
        name="lumina2",
        config={
            **IMAGES,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": [4, 4, 4],
            "axes_lens": [8, 8, 8],  # shorter than some texts and grids of these tests
            "cap_feat_dim": 12,
        },
    ),
    Tiny(
        name="flux2",
        config={
            **HEADS,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 12,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": [4, 4, 4, 4],
        },
        guidance=2.5,
    ),
    Tiny(
        name="sana",
        config={
            **HEADS,
            **IMAGES,
            **CROSS,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "timestep_scale": 0.5,
        },
    ),
    Tiny(
        name="prx",
        config={
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 12,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [8, 8],
        },
    ),
    Tiny(
        name="pixart-sigma",
        config={**HEADS, **IMAGES, **CROSS, "out_channels": 8, "interpolation_scale": 2},
    ),
]
BY_NAME = {tiny.name: tiny for tiny in ALL}


@pytest.fixture(params=BY_NAME)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Each of them in turn; a test that parametrises "tiny" indirectly, by name, gets those that it names."""
    return BY_NAME[request.param]
