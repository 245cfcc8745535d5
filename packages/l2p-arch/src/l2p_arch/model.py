"""L2PTransformer: the trunk of a source family between a pixel embedder and a Detailer Head (Fig. 3)."""

import re
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin, get_parameter_dtype
from torch import Tensor

from l2p_arch.alignment import (
    HEAD_INPUTS,
    LEAST_SIGMA,
    Alignment,
    alignment_sizes,
    head_input,
    normalised,
)
from l2p_arch.arguments import check_patch_size
from l2p_arch.detailer import DetailerHead
from l2p_arch.enlargement import block_means, enlarged, reduced, repeated, split_head_channels
from l2p_arch.errors import ArchError
from l2p_arch.families import Conditioning, Family, find_family
from l2p_arch.files.mapping import loading_options
from l2p_arch.guidance_input import GuidanceEmbedder, add_embedder, check_range, completed, told_scales
from l2p_arch.linear_head import LinearHead
from l2p_arch.model_checks import check_inputs, check_keys, check_prediction
from l2p_arch.patchify import pixels_to_patches
from l2p_arch.polish import configured_polish
from l2p_arch.quantisation import use_quantised_layers


class L2PTransformer(ModelMixin, PeftAdapterMixin, ConfigMixin):
    """Predicts the velocity (noise - x_0) of pixels.

    Adapters (LoRA) are diffusers' `add_adapter` and so on, which need the extra `lora`; those in circulation
    go in by `L2PPipeline.load_lora_weights`.

    Args:
        family: name of the source family, a key of `FAMILIES`.
        trunk_config: config of the SOURCE transformer, as in its config.json; the pixel-space one is derived
            from it.
        patch_size: side P of a patch, px.
        head_channels: encoder widths of the Detailer Head, finest first (Table 3 by default); empty for a
            plain linear head.
        head_bottleneck: width after the fusion; the last of head_channels unless given.
        head_decoder_floor: least width of a decoder level.
        prediction: what the head answers: "velocity", as in the paper, or "x_0", the image.
        alignment: None for the paper's recipe. For the aligned one, which keeps the source's last layer and
            predicts "x_0", the arguments of `Alignment` beside the sizes, "version", and "polish", the
            default of `L2PPipeline`'s argument. Of version 2, which `upscale` writes: "enlargement", how
            often the patch is the aligned one along a side, and "detail" (`l2p_arch.enlargement`);
            head_channels then begin with those of a second head, for what is finer.
        quantisation: "int8" or "fp8" where the blocks' linear layers are stored in 8 bits, see `quantise`.
        guidance_range: the lowest and the highest scale of guidance that the model has learned to take as a
            number, "guidance" in a sample's conditioning (`l2p_arch.guidance_input`), and so in one pass;
            None where guidance is a second pass.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["aligner"]  # noqa: RUF012 (diffusers declares it so)
    _group_offload_block_modules = ("trunk",)  # its lists of blocks, and not the two halves of the model

    @register_to_config
    def __init__(
        self,
        family: str,
        trunk_config: dict[str, Any],
        patch_size: int = 16,
        head_channels: Sequence[int] = (64, 128, 256, 512),
        head_bottleneck: int | None = None,
        head_decoder_floor: int = 0,
        prediction: str = "velocity",
        alignment: dict[str, Any] | None = None,
        quantisation: str | None = None,
        guidance_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        # What is given by position would count as left out, and `from_config` could not build it again.
        self.register_to_config(_use_default_values=[])
        check_patch_size(patch_size)
        check_prediction(prediction, alignment, head_channels)
        self.source_family: Family = find_family(family)
        self.patch_size = patch_size
        self.aligner: Alignment | None = None
        self.enlargement = int((alignment or {}).get("enlargement", 1))
        if alignment is None:
            self.trunk = self.source_family.build_trunk(trunk_config, 3 * patch_size**2)
        else:
            self.trunk = self.source_family.build_whole_trunk(trunk_config)
            latents = self.source_family.latent_channels(trunk_config)
            self.aligner = Alignment(patch_size // self.enlargement, latents, **alignment_sizes(alignment))
            self._answer_order = self.source_family.answer_order(trunk_config)
            self._answer_channels = self.source_family.answer_channels(trunk_config)
        self._build_heads(trunk_config, head_channels, head_bottleneck, head_decoder_floor)
        self.source_family.fill_unset(self.trunk)
        self.guidance_range: tuple[float, float] | None = None
        self.guidance_embedder: GuidanceEmbedder | None = None
        if guidance_range is not None:
            self._take_guidance(check_range(guidance_range))
        if quantisation is not None:
            use_quantised_layers(self, quantisation)
        self._tell_diffusers()

    def _build_heads(
        self, trunk_config: dict[str, Any], channels: Sequence[int], bottleneck: int | None, floor: int
    ) -> None:
        feature_channels = self.source_family.feature_channels(trunk_config)
        self.head_widths = finer, channels = split_head_channels(channels, self.enlargement)
        self.fine_head: DetailerHead | None = None
        if finer:
            self.fine_head = DetailerHead(
                max(channels[0], floor),
                finer,
                decoder_floor=floor,
                input_channels=HEAD_INPUTS,
            )
        self.detailer_head: DetailerHead | LinearHead
        if channels:
            self.detailer_head = DetailerHead(
                feature_channels,
                channels,
                bottleneck_channels=bottleneck,
                decoder_floor=floor,
                input_channels=None if self.aligner is None else HEAD_INPUTS,
            )
        elif bottleneck or floor:
            raise ArchError(
                "head_bottleneck and head_decoder_floor belong to a Detailer Head; give head_channels too, "
                "or neither for a plain linear head"
            )
        else:
            self.detailer_head = LinearHead(feature_channels, self.patch_size)

    def _tell_diffusers(self) -> None:
        """Say what its helpers must not store in 8 bits, must not split, and may compile once for all."""
        # 8 bits would round what is new here, which is a fraction of a percent of the weights.
        self._skip_layerwise_casting_patterns: Any = [
            *(getattr(self.trunk, "_skip_layerwise_casting_patterns", None) or ()),
            r"^(detailer_head|fine_head|aligner|guidance_embedder)\.",
            rf"^trunk\.{re.escape(self.source_family.embedder)}$",
        ]
        # The head's levels read each other across its whole depth: it stays on one device.
        self._no_split_modules: Any = [
            *(getattr(self.trunk, "_no_split_modules", None) or ()),
            type(self.detailer_head).__name__,
        ]
        # Some classes do not say which blocks repeat, which torch.compile wants to know: the main ones do.
        blocks = {type(self.get_submodule(name)).__name__ for name in self.block_names()}
        self._repeated_blocks: Any = getattr(self.trunk, "_repeated_blocks", None) or sorted(blocks)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As diffusers', but from safetensors only, unless `use_safetensors` says otherwise. `disable_mmap`
        follows L2P_DISABLE_MMAP where it is not given: True loads by plain reads, for network and FUSE
        mounts."""
        mapping = loading_options(kwargs.pop("disable_mmap", None))
        options = {"use_safetensors": True} | kwargs | mapping
        return super().from_pretrained(*args, **options)

    @classmethod
    def from_single_file(cls, file: Any, *, dtype: torch.dtype | None = None) -> "L2PTransformer":
        """Return the model of a published single file, also by ComfyUI's names, in evaluation mode.

        Args:
            file: safetensors file, recognised by its content; a path of this machine.
            dtype: of the weights; None keeps the file's.
        """
        from l2p_arch.files.single_file import read_single_file

        model: L2PTransformer = read_single_file(cls, file, dtype)
        return model

    def take_guidance(self, lowest: float, highest: float, seed: int = 0) -> None:
        """Make the scale of guidance an input, which changes no answer until it is trained, unless the family
        embeds a guidance of its own: that one is then the input.

        Args:
            lowest, highest: the scales that it will learn; 1 is no guidance.
            seed: of what is new.

        Raises:
            ArchError: the range is none, or the model takes a guidance already.
        """
        if self.guidance_range is not None:
            raise ArchError(f"this model takes its guidance as a number already, in {self.guidance_range}")
        scales = check_range((lowest, highest))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._take_guidance(scales)
        self.register_to_config(guidance_range=list(scales))

    def _take_guidance(self, scales: tuple[float, float]) -> None:
        self.guidance_range = scales
        self.guidance_embedder = add_embedder(self.trunk, self.source_family.time_embedding)

    @overload
    def forward(
        self, pixels: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning], return_dict: None = None
    ) -> Tensor: ...

    @overload
    def forward(
        self, pixels: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning], return_dict: Literal[False]
    ) -> tuple[Tensor]: ...

    @overload
    def forward(
        self, pixels: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning], return_dict: Literal[True]
    ) -> Transformer2DModelOutput: ...

    def forward(
        self,
        pixels: Tensor,
        sigma: Tensor,
        conditioning: Sequence[Conditioning],
        return_dict: bool | None = None,
    ) -> Tensor | tuple[Tensor] | Transformer2DModelOutput:
        """Predict the velocity of eq. 5.

        Args:
            pixels: x_t = (1 - sigma) x_0 + sigma noise, (B, 3, H, W); any H and W that are multiples of the
                patch.
            sigma: (B,) in [0, 1], 0 = image, 1 = noise; float32 or float64.
            conditioning: one mapping per sample, as `Family.encode_text` returns them; lengths may differ.
            return_dict: as diffusers' helpers ask for the result: False is a tuple of one, True an output
                with `.sample`; None is the velocity itself.

        Returns:
            The velocity, (B, 3, H, W), in the dtype of the head's weights.
        """
        check_inputs(pixels, sigma, conditioning, self.trunk.config)
        velocity = self._velocity(pixels, sigma.to(pixels.device, torch.float32), conditioning)
        if return_dict is None:
            return velocity
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _velocity(self, pixels: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        if self.aligner is not None and self.enlargement > 1:
            return self._enlarged_velocity(self.aligner, pixels.float(), sigma, conditioning)
        if self.aligner is not None:
            return self._aligned_velocity(self.aligner, pixels.float(), sigma, conditioning)[0]
        # What they compute in, not what they are stored in; a frozen trunk may differ from a trained head.
        trunk_dtype, head_dtype = self._dtypes()
        patches = pixels_to_patches(pixels.to(trunk_dtype), self.patch_size)
        features = self._run(patches, sigma, conditioning)
        head: Tensor = self.detailer_head(pixels.to(head_dtype), features.to(head_dtype))
        if self.config["prediction"] == "x_0":
            return (pixels.float() - head.float()) / sigma.clamp_min(LEAST_SIGMA).view(-1, 1, 1, 1)
        return self.source_family.velocity_sign * head

    def _aligned_velocity(
        self,
        alignment: Alignment,
        pixels: Tensor,
        sigma: Tensor,
        conditioning: Sequence[Conditioning],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the closed form's velocity less what the head adds to its image, in units of its error, and
        that error, float32; what a second head reads of the first one, where there is one."""
        latents, features = self.predicted_latents(pixels, sigma, conditioning)
        decoded, head_dtype = alignment.decode(latents), self._dtypes()[1]
        velocity = alignment.velocity(pixels, decoded, sigma)
        error = alignment.error(sigma)
        read = head_input(pixels, decoded, velocity, error, sigma)
        fused = read.to(head_dtype), normalised(features).to(head_dtype)
        if self.fine_head is None:
            return velocity - error.view(-1, 1, 1, 1) * self.detailer_head(*fused).float(), error, None
        answer, hidden = self.detailer_head(*fused, with_hidden=True)
        return velocity - error.view(-1, 1, 1, 1) * answer.float(), error, hidden

    def _enlarged_velocity(
        self,
        alignment: Alignment,
        pixels: Tensor,
        sigma: Tensor,
        conditioning: Sequence[Conditioning],
    ) -> Tensor:
        """Return the small model's velocity of the block means, and of the rest what the second head
        answers.
        """
        assert self.fine_head is not None
        factor = self.enlargement
        small = reduced(pixels, sigma, factor)
        velocity, error, hidden = self._aligned_velocity(alignment, small.pixels, small.sigma, conditioning)
        detail = float(self.config["alignment"]["detail"])
        image, velocity, error = enlarged(pixels, sigma, small, velocity, error, factor, detail)
        read = head_input(pixels, image, velocity, error, sigma)
        head: Tensor = self.fine_head(read.to(self._dtypes()[1]), hidden).float()
        head = head - repeated(block_means(head, factor), factor)  # the means are the small model's to say
        return velocity - error.view(-1, 1, 1, 1) * head

    def predicted_latents(
        self, pixels: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]
    ) -> tuple[Tensor, Tensor]:
        """Return what the trunk of an aligned model makes of x_t (B, 3, H, W), float32, at sigma (B,): the
        latent patches z_hat (B, r, h, w), float32, and its last tokens (B, D, h, w)."""
        assert self.aligner is not None
        z_t, source_sigma = self.aligner.to_latents(pixels, sigma)
        both = self._run(z_t.to(self._dtypes()[0]), source_sigma, conditioning)
        answer = self.source_family.velocity_sign * both[:, self._answer_order].float()
        features = both[:, self._answer_channels :]
        return self.source_family.predicted_latent(z_t, source_sigma, answer), features

    def _run(self, patches: Tensor, sigma: Tensor, conditioning: Sequence[Conditioning]) -> Tensor:
        run, scales = self.source_family.run, self.guidance_range
        try:
            if scales is None:
                return run(self.trunk, patches, sigma, conditioning)
            conditioning = completed(conditioning, scales)
            with told_scales(conditioning):
                return run(self.trunk, patches, sigma, conditioning)
        except KeyError as error:
            check_keys(error.args[0], conditioning, self.source_family.name)
            raise

    def _dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Return what trunk and head compute in."""
        embedder = self.trunk.get_submodule(self.source_family.embedder)
        trunk, head = get_parameter_dtype(embedder), get_parameter_dtype(self.detailer_head)
        return (trunk if trunk.is_floating_point else head), head  # the trunk may be quantised

    def block_names(self) -> list[str]:
        """Return the names of the main blocks in the order in which data flows, such as "trunk.layers.0"."""
        return [
            f"trunk.{block_list}.{index}"
            for block_list in self.source_family.block_lists
            for index in range(len(list(self.trunk.get_submodule(block_list).children())))
        ]

    def shallow_names(self) -> list[str]:
        """Return modules and parameters beside the main blocks that train: embedders, refiners, pad tokens
        and the head."""
        family = self.source_family
        kept = [] if self.aligner is None else [family.final_norm, family.final_projection]
        names = dict.fromkeys((*family.shallow, *kept))
        return [f"trunk.{name}" for name in names] + self._own_names()

    def new_names(self) -> list[str]:
        """Return modules that the source did not have."""
        embedder = [] if self.aligner is not None else [f"trunk.{self.source_family.embedder}"]
        return [*embedder, *self._own_names()]

    def _own_names(self) -> list[str]:
        heads = ["detailer_head"] if self.fine_head is None else ["detailer_head", "fine_head"]
        return heads if self.guidance_embedder is None else [*heads, "guidance_embedder"]

    def enable_head_tiling(self, tile: int | None = 1024) -> None:
        """Run the heads in square tiles of about `tile` px of the image, or whole again with None, see
        `DetailerHead.enable_tiling`."""
        if self.fine_head is not None:
            self.fine_head.enable_tiling(tile)
        self.detailer_head.enable_tiling(tile and max(tile // self.enlargement, 1))

    @property
    def head_inputs(self) -> int:
        """Channels that the head reads at full size."""
        return 3 if self.aligner is None else HEAD_INPUTS

    @property
    def polish(self) -> tuple[float, ...]:
        """The sigmas that `L2PPipeline` denoises a finished image at once more, in their order."""
        return configured_polish(self.config)

    @property
    def least_sigma(self) -> float:
        """What the velocity (x_t - x_0) / sigma is divided by at smaller sigmas; 0 where nothing is divided.

        An aligned model with filters fits the velocity itself, and a paper model with `prediction` "velocity"
        answers it. An enlarged model divides at the sigma of its small one.
        """
        divides = (
            self.config["prediction"] == "x_0" if self.aligner is None else not len(self.aligner.filters)
        )
        return LEAST_SIGMA if divides else 0.0

    @property
    def noise_scale(self) -> float:
        """What multiplies the source's noise shift: f s of an aligned model, 1 in the paper's recipe."""
        return 1.0 if self.aligner is None else self.enlargement * float(self.aligner.scale)

    def idle_names(self) -> list[str]:
        """Return modules that never get a gradient, because nothing downstream reads them; leave them
        frozen.
        """
        names = []
        for name in self.source_family.idle:
            block_list, _, rest = name.partition(".-1.")
            last = [block for block in self.block_names() if block.startswith(f"trunk.{block_list}.")][-1]
            names.append(f"{last}.{rest}")
        return names
