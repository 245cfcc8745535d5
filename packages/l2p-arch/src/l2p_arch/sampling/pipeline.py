"""L2PPipeline: text -> pixels, without a VAE; a diffusers DiffusionPipeline."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from einops import rearrange
from PIL import Image
from torch import Tensor

from l2p_arch.errors import ArchError
from l2p_arch.families import Conditioning
from l2p_arch.model import L2PTransformer
from l2p_arch.patchify import check_size
from l2p_arch.sampling.guidance import guided
from l2p_arch.sampling.initial_state import draw_noise, generators_of, start_from
from l2p_arch.sampling.schedule import flow_schedule

_TEXT_COMPONENTS = (
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "text_encoder_3",
    "tokenizer_3",
)


_NEVER_FETCHED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx", ".msgpack", ".h5", ".py")


class L2PPipeline(DiffusionPipeline):
    """Samples images with an `L2PTransformer`, the source's own text encoders and any flow-matching
    scheduler."""

    model_cpu_offload_seq: Any = "text_encoder->text_encoder_2->text_encoder_3->transformer"
    _optional_components = list(_TEXT_COMPONENTS)  # noqa: RUF012 (diffusers declares it so)

    def __init__(
        self,
        transformer: L2PTransformer,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
    ) -> None:
        super().__init__()
        self._interrupt = False
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As diffusers', except that PRX's text encoder is looked for in the one place where it loads from.

        Directories name it as transformers' or diffusers' own, and neither library exports it.
        """
        config = super().load_config(*args, **kwargs)
        if isinstance(config, dict) and "T5GemmaEncoder" in config.get("text_encoder", ()):
            config["text_encoder"] = ["prx", "T5GemmaEncoder"]
        return config

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetch a model from the Hub and return its directory; never pickles, nor code.

        diffusers' own refuses repositories with a component of a library that it does not know.
        """
        from huggingface_hub import snapshot_download

        names = ("revision", "token", "cache_dir", "force_download", "local_files_only")
        given = [name for name in (*_TEXT_COMPONENTS, "transformer", "scheduler") if name in kwargs]
        ignored = [f"*{suffix}" for suffix in _NEVER_FETCHED] + [f"{name}/*" for name in given]
        options = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return str(snapshot_download(pretrained_model_name, ignore_patterns=ignored, **options))

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt`, after which no further step is made."""
        return self._interrupt

    @torch.no_grad()
    def encode(
        self,
        prompts: str | Sequence[str],
        *,
        max_sequence_length: int | None = None,
        negative: bool = False,
    ) -> list[Conditioning]:
        """The conditioning of each prompt, as the source family encodes text.

        What exceeds `max_sequence_length` tokens is cut off; None stands for the family's own limit. With
        `negative` as it encodes negative prompts, before which some families put no instruction.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ArchError(f"prompts {prompts!r} are not all text")
        if max_sequence_length is not None and max_sequence_length < 1:
            raise ArchError(f"max_sequence_length {max_sequence_length} must be at least 1")
        if self.transformer is None:
            raise ArchError(
                "this pipeline was loaded without its transformer, which knows how text is encoded"
            )
        family = self.transformer.source_family
        components = {name: getattr(self, name) for name in family.text_components}
        # SD3 may do without T5, but nothing without the first encoder, or without an encoder's tokenizer.
        missing = [] if self.text_encoder is not None else ["text_encoder"]
        for name, encoder in components.items():
            tokenizer = name.replace("text_encoder", "tokenizer")
            if name.startswith("text_encoder") and encoder is not None and components[tokenizer] is None:
                missing.append(tokenizer)
        if missing:
            raise ArchError(
                f"this pipeline was loaded without its {', '.join(missing)}; pass prompt_conditioning, and "
                "negative_conditioning where guidance_scale is above 1"
            )
        encode = (negative and family.encode_negative_text) or family.encode_text
        return encode(
            {**components, "trunk": self.transformer.trunk},
            prompts,
            device=self._execution_device,
            max_sequence_length=max_sequence_length or family.text_tokens,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int = 1024,
        width: int = 1024,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        distilled_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise_shift: float | None = None,
        image: Image.Image | Sequence[Image.Image] | np.ndarray | Tensor | None = None,
        strength: float = 0.6,
        prompt_conditioning: Sequence[Conditioning] | None = None,
        negative_conditioning: Sequence[Conditioning] | None = None,
        max_sequence_length: int | None = None,
        output_type: str = "pil",
        on_step: Callable[[int, float, Tensor], None] | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], Any] | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images.

        Args:
            prompt: one or more prompts; or give `prompt_conditioning` (from `encode`).
            height, width: px, multiples of the patch size.
            num_inference_steps: steps of the sampler.
            guidance_scale: s in neg + s * (pos - neg); 1 or less means one pass and no negative prompt.
            guidance_rescale: 0 to 1, see `guided`.
            distilled_guidance_scale: what guidance-distilled models (FLUX.1 [dev], FLUX.2 [dev]) embed beside
                the time, in every pass; None is the default of the family's own pipeline.
            negative_prompt: one for all, or one per prompt; None is the empty one.
            num_images_per_prompt: images per prompt, neighbours in the result.
            seeds: one per image; an image depends on its own seed and never on its batch, also where the
                scheduler draws noise in every step.
            generator: instead of seeds, one generator per image or one that is drawn from in turn.
            noise_shift: shift of the sigma schedule; None keeps the scheduler's own.
            image: start from these instead of from noise: one, or one per image; tensors (N, 3, H, W) in [-1,
                1], arrays (N, H, W, 3) in [0, 1], either as uint8 in 0 ... 255, or PIL images, which are
                resized.
            strength: with `image`, the share of the steps that is run; 1 forgets the image, 0 returns it.
            prompt_conditioning, negative_conditioning: encoded text in place of prompts.
            max_sequence_length: longest text, in tokens; None: as the source's own pipeline has it.
            output_type: "pil", "np" (N, H, W, 3 in [0, 1]) or "pt" (N, 3, H, W around [-1, 1], not clamped).
            on_step: called after each step with its number, its sigma and the float32 state (N, 3, H, W).
            callback_on_step_end: as in diffusers: called with this pipeline, the step, its timestep and
                {"x_t": state}; may return {"x_t": another state}, and set `_interrupt` to end the sampling.
            return_dict: False returns a tuple of one.

        Returns:
            `.images`, in the order of the prompts.
        """
        if self.transformer is None:
            raise ArchError("this pipeline was loaded without its transformer; it can paint nothing")
        check_size(height, width, self.transformer.patch_size)
        if output_type not in ("pil", "np", "pt"):
            raise ArchError(f"output_type {output_type!r} is not one of pil, np, pt")
        if num_images_per_prompt < 1:
            raise ArchError(f"num_images_per_prompt {num_images_per_prompt} must be at least 1")
        positive = self._conditioning(prompt, prompt_conditioning, max_sequence_length)
        negative: list[Conditioning] = []
        if guidance_scale > 1:
            words = negative_prompt or ""
            negative = self._conditioning(words, negative_conditioning, max_sequence_length, len(positive))
        positive = self._embedding(positive, distilled_guidance_scale, num_images_per_prompt)
        negative = self._embedding(negative, distilled_guidance_scale, num_images_per_prompt)
        generators = generators_of(len(positive), seeds, generator)
        noise = draw_noise(generators, height, width).to(self._execution_device)
        scheduler = flow_schedule(
            self.scheduler,
            num_inference_steps,
            noise_shift=noise_shift,
            image_tokens=height * width // self.transformer.patch_size**2,
            device=noise.device,
            changes=self.transformer.source_family.flow_scheduler,
            dynamic_shift=self.transformer.source_family.dynamic_shift,
        )
        x_t, first = start_from(image, noise, scheduler, strength)

        def velocity(x_t: Tensor, sigma: Tensor) -> Tensor:
            return self._velocity(x_t, sigma, positive, negative, guidance_scale, guidance_rescale)

        x_0 = self._sample(x_t, scheduler, first, velocity, generators, on_step, callback_on_step_end)
        images = _to_images(x_0, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _conditioning(
        self,
        prompt: str | Sequence[str] | None,
        given: Conditioning | Sequence[Conditioning] | None,
        max_sequence_length: int | None,
        prompts_against: int | None = None,
    ) -> list[Conditioning]:
        """What was given, or else the prompts' encoding; as many as the prompts that they are set against."""
        negative = prompts_against is not None
        if given is None and (prompt is None or (not isinstance(prompt, str) and not list(prompt))):
            raise ArchError("nothing to draw: give a prompt, a list of prompts, or prompt_conditioning")
        if given is None:
            assert prompt is not None
            given = self.encode(prompt, max_sequence_length=max_sequence_length, negative=negative)
        elif prompt is not None and not negative:
            raise ArchError("prompt and prompt_conditioning were both given; one of them says what to draw")
        given = [given] if isinstance(given, Mapping) else given
        if prompts_against is not None and len(given) == 1:
            given = [*given] * prompts_against
        if prompts_against not in (None, len(given)):
            raise ArchError(
                f"{len(given)} negative prompts for {prompts_against} prompts; give one text, or as many"
            )
        return list(given)

    def _embedding(
        self, conditioning: Sequence[Conditioning], guidance: float | None, copies: int
    ) -> list[Conditioning]:
        """The conditioning of each image, with the guidance that a distilled model embeds."""
        if guidance is not None and not self.transformer.trunk.config.get("guidance_embeds"):
            family = self.transformer.source_family.name
            raise ArchError(
                f"distilled_guidance_scale {guidance} is for models that embed their guidance, and this "
                f"{family} does not; use guidance_scale"
            )
        embedded = {} if guidance is None else {"guidance": torch.tensor(float(guidance))}
        return [{**sample, **embedded} for sample in conditioning for _ in range(copies)]

    def _sample(
        self,
        x_t: Tensor,
        scheduler: Any,
        first: int,
        velocity: Callable[[Tensor, Tensor], Tensor],
        generators: list[torch.Generator],
        on_step: Callable[[int, float, Tensor], None] | None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], Any] | None,
    ) -> Tensor:
        """x_0, from x_t at the schedule's step `first`."""
        options: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(scheduler.step).parameters:
            options["generator"] = generators
        self._interrupt = False
        with self.progress_bar(total=len(scheduler.timesteps) - first) as progress:
            for step, timestep in enumerate(scheduler.timesteps[first:]):
                if self.interrupt:
                    break
                sigma = scheduler.sigmas[first + step]  # timesteps are rounded to whole numbers by some
                x_t = scheduler.step(velocity(x_t, sigma), timestep, x_t, **options)[0]
                if on_step is not None:
                    on_step(step, float(sigma), x_t)
                if callback_on_step_end is not None:
                    answer = callback_on_step_end(self, step, timestep, {"x_t": x_t}) or {}
                    x_t = answer.get("x_t", x_t)
                progress.update()
        self.maybe_free_model_hooks()
        return x_t

    def _velocity(
        self,
        x_t: Tensor,
        sigma: Tensor,
        positive: Sequence[Conditioning],
        negative: Sequence[Conditioning],
        guidance_scale: float,
        guidance_rescale: float,
    ) -> Tensor:
        """The guided velocity, float32."""
        sigmas = sigma.to(x_t.device, torch.float32).expand(len(x_t))
        if not negative:
            return self.transformer(x_t, sigmas, positive).float()
        both = self.transformer(
            torch.cat((x_t, x_t)), torch.cat((sigmas, sigmas)), [*positive, *negative]
        ).float()
        with_prompt, without = both.chunk(2)
        return guided(with_prompt, without, guidance_scale, guidance_rescale)


def _to_images(x_0: Tensor, output_type: str) -> Any:
    pixels = x_0.float().cpu()
    if output_type == "pt":
        return pixels
    array = rearrange((pixels.clamp(-1, 1) + 1) / 2, "n c h w -> n h w c").numpy()
    if output_type == "np":
        return array
    return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in array]
