"""L2PPipeline: text -> pixels, without a VAE; a diffusers DiffusionPipeline."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from l2p_arch.arguments import check_callables, check_counts, check_numbers, check_texts
from l2p_arch.errors import ArchError
from l2p_arch.families import Conditioning
from l2p_arch.model import L2PTransformer
from l2p_arch.polish import polish_sigmas, polished
from l2p_arch.sampling.adapters import Adapters
from l2p_arch.sampling.arguments import answered_state, watched_states
from l2p_arch.sampling.guidance import check_guidance, guided, learned_scale
from l2p_arch.sampling.initial_state import (
    Hold,
    check_noise,
    draw_noise,
    generators_of,
    start_from,
)
from l2p_arch.sampling.inpainting import canvas_for
from l2p_arch.sampling.pictures import OUTPUT_TYPES, to_images
from l2p_arch.sampling.prompts import Prompts
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


class L2PPipeline(Prompts, Adapters):
    """Samples images with an `L2PTransformer`, the source's own text encoders and any flow-matching
    scheduler."""

    model_cpu_offload_seq: Any = "text_encoder->text_encoder_2->text_encoder_3->transformer"
    _optional_components = list(_TEXT_COMPONENTS)  # noqa: RUF012 (diffusers declares it so)
    _callback_tensor_inputs = ["x_t", "latents"]  # noqa: RUF012 (one state, by our name and by diffusers')
    _num_timesteps = 0
    _guidance_scale = 1.0

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

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the schedule in the latest call."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """Of the latest call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call led away from a negative prompt, in a second pass."""
        return self._guidance_scale > 1 and self.transformer.guidance_range is None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        distilled_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        noise_shift: float | None = None,
        sigmas: Sequence[float] | None = None,
        image: Image.Image | Sequence[Image.Image] | np.ndarray | Tensor | None = None,
        mask_image: Image.Image | Sequence[Image.Image] | np.ndarray | Tensor | None = None,
        strength: float | None = None,
        prompt_conditioning: Sequence[Conditioning] | None = None,
        negative_conditioning: Sequence[Conditioning] | None = None,
        prompt_embeds: Sequence[Conditioning] | Sequence[Tensor] | Tensor | None = None,
        negative_prompt_embeds: Sequence[Conditioning] | Sequence[Tensor] | Tensor | None = None,
        max_sequence_length: int | None = None,
        output_type: str = "pil",
        on_step: Callable[[int, float, Tensor], None] | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x_t", "latents"),
        polish: float | Sequence[float] | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images.

        Args:
            prompt: one or more prompts; or give `prompt_conditioning` (from `encode`).
            height, width: px, multiples of the patch size. None is the size of `image`, for an image to
                start from down to whole patches, or 1024.
            num_inference_steps: steps of the sampler.
            guidance_scale: s in neg + s * (pos - neg); 1 or less means one pass and no negative prompt. A
                model with a `guidance_range` takes it as a number, in one pass, and has no negative prompt.
            guidance_rescale: 0 to 1, see `guided`.
            distilled_guidance_scale: what guidance-distilled models (FLUX.1 [dev], FLUX.2 [dev]) embed beside
                the time, in every pass; None is the default of the family's own pipeline.
            negative_prompt: one for all, or one per prompt; None is the empty one.
            num_images_per_prompt: images per prompt, neighbours in the result.
            seeds: one per image; an image depends on its own seed and never on its batch, also where the
                scheduler draws noise in every step.
            generator: instead of seeds, one generator per image or one that is drawn from in turn.
            latents: noise (N, 3, H, W) to start from, in place of the seeds'.
            noise_shift: shift of the sigma schedule; None keeps the scheduler's own. An aligned model
                multiplies it by its `noise_scale`: it is meant on the source's time axis.
            sigmas: in place of num_inference_steps, the schedule before the shift: descending from at most 1
                to above 0.
            image: start from these instead of from noise: one, or one per image; tensors (N, 3, H, W) in [-1,
                1], arrays (N, H, W, 3) in [0, 1], either as uint8 in 0 ... 255, or PIL images, which are
                resized.
            mask_image: with `image`, where to paint: white or 1 is painted, black or 0 stays as it is, bit by
                bit; grey is a strength of its own, see `start_from`. One, or one per image, see `to_mask`.
                Without height and width the image may have any size.
            polish: after the last step, take the image once for x_t at this sigma, in [0, 1), although no
                noise was added, and denoise it: what grain is left goes. Several sigmas are as many passes.
                None: as the model's config has it, 0 in the paper's recipe; not with an `image`.
            strength: with `image`, the share of the steps that is run; 1 forgets the image, 0 returns it.
                None is 0.6, or 1 with a mask.
            prompt_conditioning, negative_conditioning: encoded text in place of prompts.
            prompt_embeds, negative_prompt_embeds: the same by diffusers' names; also bare text embeddings
                (length, width) per prompt, of families without pooled text.
            max_sequence_length: longest text, in tokens; None: as the source's own pipeline has it.
            output_type: "pil", "np" (N, H, W, 3 in [0, 1]), "pt" (N, 3, H, W in [0, 1]) or "latent", the
                final state (N, 3, H, W) around [-1, 1] as it is, whatever it holds.
            on_step: called after each step with its number, its sigma and the float32 state (N, 3, H, W).
            callback_on_step_end: as in diffusers: called with this pipeline, the step, its timestep and
                {"x_t": state, "latents": state}; may return another state under either name, and set
                `_interrupt` to end the sampling.
            callback_on_step_end_tensor_inputs: which of the two it is handed.
            return_dict: False returns a tuple of one.

        Returns:
            `.images`, in the order of the prompts.

        Raises:
            ArchError: an argument is wrong, or the model painted NaN or infinity.
        """
        if self.transformer is None:
            raise ArchError("this pipeline was loaded without its transformer; it can paint nothing")
        if output_type not in OUTPUT_TYPES:
            raise ArchError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        check_texts(prompt=prompt, negative_prompt=negative_prompt)
        check_counts(num_images_per_prompt=num_images_per_prompt)
        check_numbers(noise_shift=noise_shift, strength=strength)
        check_callables(on_step=on_step, callback_on_step_end=callback_on_step_end)
        check_guidance(guidance_scale, guidance_rescale, distilled_guidance_scale)
        passes = self.transformer.polish if polish is None else polish_sigmas(polish)
        if polish is not None and passes and image is not None:
            raise ArchError(
                f"polish {polish} takes the grain off what was painted from noise, and an image was given to "
                "start from; leave polish out"
            )
        watched = watched_states(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        learned = learned_scale(
            self.transformer,
            guidance_scale,
            guidance_rescale=guidance_rescale,
            distilled_guidance_scale=distilled_guidance_scale,
            negative_prompt=negative_prompt,
        )
        positive = self._conditioning(
            prompt, _one_of(prompt_conditioning, prompt_embeds), max_sequence_length
        )
        negative: list[Conditioning] = []
        if guidance_scale > 1 and learned is None:
            given = _one_of(negative_conditioning, negative_prompt_embeds)
            negative = self._conditioning(negative_prompt or "", given, max_sequence_length, len(positive))
        number = distilled_guidance_scale if learned is None else learned
        positive = self._embedding(positive, number, num_images_per_prompt)
        negative = self._embedding(negative, number, num_images_per_prompt)
        canvas = canvas_for(
            image, mask_image, height, width, count=len(positive), patch_size=self.transformer.patch_size
        )
        generators = generators_of(len(positive), seeds, generator)
        if latents is None:
            noise = draw_noise(generators, canvas.height, canvas.width)
        else:
            noise = check_noise(latents, len(positive), canvas.height, canvas.width)
        noise = noise.to(self._execution_device)
        family = self.transformer.source_family
        scheduler = flow_schedule(
            self.scheduler,
            num_inference_steps,
            noise_shift=noise_shift,
            image_tokens=canvas.height * canvas.width // self.transformer.patch_size**2,
            device=noise.device,
            changes=family.flow_scheduler,
            dynamic_shift=family.dynamic_shift,
            sigmas=sigmas,
            noise_scale=self.transformer.noise_scale,
        )
        if strength is None:
            strength = 0.6 if mask_image is None else 1.0
        x_t, first, hold = start_from(canvas.image, noise, scheduler, strength, canvas.mask)
        self._guidance_scale, self._num_timesteps = float(guidance_scale), len(scheduler.timesteps) - first

        def velocity(x_t: Tensor, sigma: Tensor) -> Tensor:
            return self._velocity(x_t, sigma, positive, negative, guidance_scale, guidance_rescale)

        def after_step(step: int, timestep: Tensor, x_t: Tensor) -> Tensor:
            if on_step is not None:
                on_step(step, float(scheduler.sigmas[first + step]), x_t)
            if callback_on_step_end is None:
                return x_t
            return answered_state(
                callback_on_step_end(self, step, timestep, dict.fromkeys(watched, x_t)), x_t
            )

        x_0 = self._sample(x_t, scheduler, first, velocity, generators, after_step, hold)
        if canvas.image is None and not self.interrupt:
            texts = positive if learned is None else [_without_guidance(text) for text in positive]
            x_0 = polished(
                x_0,
                passes,
                lambda x_t, sigma: self._velocity(x_t, sigma, texts, [], 1, 0),
                least_sigma=self.transformer.least_sigma,
                enlargement=self.transformer.enlargement,
            )
        self.maybe_free_model_hooks()
        images = to_images(x_0[..., : canvas.shown[0], : canvas.shown[1]], output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample(
        self,
        x_t: Tensor,
        scheduler: Any,
        first: int,
        velocity: Callable[[Tensor, Tensor], Tensor],
        generators: list[torch.Generator],
        after_step: Callable[[int, Tensor, Tensor], Tensor],
        hold: Hold | None,
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
                x_t = after_step(step, timestep, hold(x_t, first + step + 1) if hold else x_t)
                progress.update()
        return hold(x_t, len(scheduler.timesteps)) if hold else x_t

    def _velocity(
        self,
        x_t: Tensor,
        sigma: Tensor,
        positive: Sequence[Conditioning],
        negative: Sequence[Conditioning],
        guidance_scale: float,
        guidance_rescale: float,
    ) -> Tensor:
        """Return the guided velocity, float32."""
        sigmas = sigma.to(x_t.device, torch.float32).expand(len(x_t))
        if not negative:
            return self.transformer(x_t, sigmas, positive).float()
        both = self.transformer(
            torch.cat((x_t, x_t)), torch.cat((sigmas, sigmas)), [*positive, *negative]
        ).float()
        with_prompt, without = both.chunk(2)
        return guided(with_prompt, without, guidance_scale, guidance_rescale)


def _one_of(ours: Any, theirs: Any) -> Any:
    if ours is not None and theirs is not None:
        raise ArchError("the conditioning was given by our name and by diffusers'; give it once")
    return theirs if ours is None else ours


def _without_guidance(conditioning: Conditioning) -> Conditioning:
    """Return the conditioning for which a model with a `guidance_range` uses the lowest scale."""
    return {key: value for key, value in conditioning.items() if key != "guidance"}
