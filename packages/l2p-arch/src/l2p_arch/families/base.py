"""What the rest of the package must know about a family of source models, as data and a few functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from l2p_arch.errors import ArchError
from l2p_arch.families.kept_output import keep_output
from l2p_arch.source_formats import SourceFormat, source_format

Conditioning = Mapping[str, Tensor]
"""The text conditioning of ONE sample, without a batch dimension; the keys are the family's own."""
CONDITIONING_DIMENSIONS = {"caption": 2, "text": 2, "pooled": 1, "guidance": 0}
"""What the keys hold: (length, width), (length, width), (width,) and a number."""
TEXT_WIDTHS = {
    **dict.fromkeys(
        ("caption", "text"), ("cap_feat_dim", "joint_attention_dim", "caption_channels", "context_in_dim")
    ),
    "pooled": ("pooled_projection_dim",),
}
"""Which entry of a trunk's config says how wide a key's embeddings are: the first that there is."""


IN_ROWS = "b c (h py) (w px) -> b h w (py px c)"
"""How many classes fold a latent patch, in their first layer, their last one, or both."""


def latents_as_scaled(vae: Any, pixels: Tensor) -> Tensor:
    """Return (mode - shift) * scale, as the users of AutoencoderKL and AutoencoderDC do."""
    encoded = vae.encode(pixels.to(vae.dtype))
    latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    return (latents.float() - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def plain_text_room(components: Mapping[str, Any], most: int, negative: bool) -> tuple[Any, int]:
    """Return `Family.text_room` where the prompt stands alone, read by one encoder."""
    return room_in(components["tokenizer"], most)


PROBE = "|||"
"""A prompt that no chat template writes by itself."""


def before_prompt(written: str) -> str:
    """Return what a chat template writes before the prompt.

    Args:
        written: what it made of `PROBE`.

    Raises:
        ArchError: the prompt is not in it, so that every picture would be of nothing.
    """
    if PROBE not in written:
        raise ArchError(
            "the tokenizer's chat template (chat_template.jinja) leaves the prompt out: it is damaged; fetch "
            "or write the model again"
        )
    return written.split(PROBE)[0]


def room_in(tokenizer: Any, most: int, before: str = "") -> tuple[Any, int]:
    """Return the tokenizer, and the tokens of a prompt that fit into `most` behind what stands before it."""
    if tokenizer is None:
        return None, 0
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor has one
    around = len(tokenizer(before).input_ids) if before else tokenizer.num_special_tokens_to_add()
    return tokenizer, most - around


@dataclass(frozen=True, kw_only=True)
class LatentEmbedder:
    """The source's own first layer: a linear map of folded latent patches."""

    name: str
    """Prefix of its weight and bias among the source's tensors; a convolution counts as linear."""
    patch_size: int
    """Side of a patch, in latent pixels."""
    fold: str = "b c (h py) (w px) -> b h w (c py px)"
    """einops pattern from latents to the vectors that the weight multiplies."""
    packed: bool = False
    """Whether the source's config counts the channels of a folded patch, and not of a latent."""
    answer: str | None = None
    """Prefix of the source's last layer, where it is called otherwise in a trunk with the patch of one
    token."""
    answer_fold: str | None = None
    """As `fold`, of what the last layer answers, where that lies in another order."""


def latent_of_velocity(z_t: Tensor, sigma: Tensor, answer: Tensor) -> Tensor:
    """Return the latent (B, r, h, w) that a velocity (noise - z_0) at z_t and sigma (B,) points to."""
    return z_t - sigma.view(-1, 1, 1, 1) * answer


@dataclass(frozen=True, kw_only=True)
class Family:
    """One source family: diffusers' own transformer class, unmodified, with its latent ends taken off.

    The time axis of this package is sigma, 0 = image, 1 = noise; a family's other conventions stay inside
    `run` and `velocity_sign`.
    """

    name: str
    """Name in configs, for example "z-image", and key of `SOURCE_FORMATS`."""
    embedder: str
    """Module of the trunk that maps patch channels to tokens (new in pixel space)."""
    block_lists: tuple[str, ...]
    """Module lists of the main blocks, in the order in which data flows; the freezing of sec. 3.3 counts
    along them."""
    shallow: tuple[str, ...]
    """Modules and parameters outside the main blocks that train together with the first and last blocks."""
    time_embedding: str
    """Module of the trunk that embeds the time, (B, width) whatever else is added to it."""
    velocity_sign: int
    """The velocity (noise - x_0) is this times the raw output."""
    idle: tuple[str, ...] = ()
    """Modules without any influence on the features, hence without gradients; "-1" names the last of a
    list."""
    feature_channels: Callable[[Mapping[str, Any]], int]
    """Source config -> width D of the image tokens."""
    pixel_config: Callable[[Mapping[str, Any], int], dict[str, Any]]
    """(source config, patch channels) -> config of the trunk, whose patch size is 1 on the grid of
    patches."""
    adapt: Callable[[Any], None] = lambda trunk: None
    """What a trunk needs to hear `run`, with and without its last layer."""
    strip_output: Callable[[Any], None]
    """Replace the final norm and projection in place, so that the trunk's forward returns the last block's
    tokens."""
    fill_unset: Callable[[Any], None] = lambda trunk: None
    """Give the parameters that diffusers' class leaves in uninitialised memory their first values."""
    final_norm: str = "norm_out"
    """Module of the trunk that the last block's tokens go through first, where the last layer is kept."""
    final_projection: str = "proj_out"
    """Module that projects them behind it; it may be the same one."""
    predicted_latent: Callable[[Tensor, Tensor, Tensor], Tensor] = latent_of_velocity
    """(z_t (B, r, h, w), sigma (B,), the signed answer of the last layer) -> the latent that it points to."""
    run: Callable[[Any, Tensor, Tensor, Sequence[Conditioning]], Tensor]
    """(trunk, patches (B, C, h, w), sigma (B,) float32, one Conditioning per sample) -> features (B, D, h,
    w)."""
    text_tokens: int = 512
    """Most tokens of a prompt, where nothing else is asked for: the default of the family's own pipeline."""
    encode_text: Callable[..., list[Conditioning]]
    """(text components by name, and the "trunk", prompts, *, device, max_sequence_length) -> one Conditioning
    per prompt."""
    text_key: str = "text"
    """What the conditioning of one sample calls its text embeddings."""
    pooled_text: bool = False
    """Whether there are pooled ones beside them."""
    text_room: Callable[[Mapping[str, Any], int, bool], tuple[Any, int]] = plain_text_room
    """(text components, max_sequence_length, whether it is a negative prompt) -> the tokenizer that counts
    (None where it is not there), and how many tokens of a prompt its encoder reads."""
    padded_text: int | None = None
    """Tokens beside max_sequence_length that every prompt has; None where prompts are as long as they are."""
    encode_negative_text: Callable[..., list[Conditioning]] | None = None
    """As `encode_text`, for what guidance leads away from, where the family's own pipeline encodes that
    otherwise."""
    dynamic_shift: Callable[[int, int], float] | None = None
    """(image tokens, steps) -> mu of a scheduler with dynamic shifting, where it is not linear in the
    tokens."""
    encode_latents: Callable[[Any, Tensor], Tensor] = latents_as_scaled
    """(the source's VAE, pixels (B, 3, H, W) in [-1, 1]) -> the latents that the source's transformer
    sees."""
    latent_embedder: Callable[[Mapping[str, Any]], LatentEmbedder]
    """Source config -> how the source turns latents into tokens, for initialisations that imitate it."""
    flow_scheduler: Mapping[str, Any] = field(default_factory=dict)
    """What to change in the config of the source's scheduler where it samples by something else than flow
    matching."""

    def caption_tokens(self, max_sequence_length: int | None, usual: int) -> int:
        """Return tokens of a prompt that has `usual` ones, as the trunk sees it."""
        most = max_sequence_length or self.text_tokens
        return min(usual, most) if self.padded_text is None else most + self.padded_text

    @property
    def source_format(self) -> SourceFormat:
        """How its directories look on disk."""
        return source_format(self.name)

    @property
    def transformer_class(self) -> str:
        """Name of the diffusers class of the trunk."""
        return self.source_format.transformer_class

    @property
    def text_components(self) -> tuple[str, ...]:
        """Pipeline components that encode text, and that a converted model takes along."""
        return self.source_format.text_components

    def build_trunk(self, config: Mapping[str, Any], patch_channels: int) -> Any:
        """Build the trunk of the paper's recipe for a source config (weights as PyTorch initialises them)."""
        source_config = {key: value for key, value in config.items() if not key.startswith("_")}
        trunk = self._build(source_config, lambda: self.pixel_config(source_config, patch_channels))
        self.strip_output(trunk)
        return trunk

    def build_whole_trunk(self, config: Mapping[str, Any]) -> Any:
        """Build the trunk that keeps the source's last layer: `run` on folded latent patches returns its
        answer and, behind it, the last block's tokens."""
        source_config = {key: value for key, value in config.items() if not key.startswith("_")}
        answers = self.answer_channels(source_config)

        def wanted() -> dict[str, Any]:
            whole = self.pixel_config(source_config, self.latent_channels(source_config))
            return {**whole, "out_channels": answers} if "out_channels" in whole else whole

        trunk = self._build(source_config, wanted)
        keep_output(trunk, self.final_norm, self.final_projection)
        # Makes the unpatchify of diffusers' forward, where there is one, a plain reshape.
        trunk.out_channels = answers + self.feature_channels(source_config)
        return trunk

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Return values r of a latent patch, as the source's first layer sees it."""
        packed = self.latent_embedder(config).packed
        return int(config["in_channels"]) * (1 if packed else self.latent_embedder(config).patch_size ** 2)

    def answer_channels(self, config: Mapping[str, Any]) -> int:
        """Return values that the source's last layer answers for a latent patch; more than r where it also
        predicts a variance."""
        if self.latent_embedder(config).packed and config.get("patch_size", 1) == 1:
            return int(config.get("out_channels") or config["in_channels"])
        if not config.get("out_channels"):
            return self.latent_channels(config)
        return int(config["out_channels"]) * self.latent_embedder(config).patch_size ** 2

    def answer_order(self, config: Mapping[str, Any]) -> list[int]:
        """Return which of the answered values stands for each value of the latent patch that the trunk
        reads.
        """
        embedder = self.latent_embedder(config)
        side = embedder.patch_size
        read, answered = self.latent_channels(config), self.answer_channels(config)
        places = torch.arange(answered, device="cpu").view(1, answered // side**2, side, side)
        folded = rearrange(places, embedder.answer_fold or embedder.fold, py=side, px=side).flatten()
        wanted = rearrange(places[:, : read // side**2], embedder.fold, py=side, px=side).flatten()
        return folded.argsort()[wanted].tolist()

    def _build(self, config: Mapping[str, Any], wanted: Callable[[], dict[str, Any]]) -> Any:
        import diffusers

        trunk_class = getattr(diffusers, self.transformer_class)
        try:
            trunk = trunk_class.from_config(wanted())
        except ArchError:
            raise
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ArchError(
                f"the source's config is no valid {self.transformer_class} config: {error!r}"
            ) from error
        self.adapt(trunk)
        return trunk


def width_of_heads(config: Mapping[str, Any]) -> int:
    """Return the width of the tokens, in the words of most configs."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


class FeaturesOnly(nn.Module):
    """Stands where a final norm or projection stood and hands the tokens on untouched, whatever else is
    passed."""

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        return tokens


def strip_norm_and_projection(trunk: Any) -> None:
    """`Family.strip_output`, in the words of most classes."""
    trunk.norm_out = FeaturesOnly()
    trunk.proj_out = FeaturesOnly()
