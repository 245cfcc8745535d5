"""The pipeline: images depend on their prompt and seed alone, and the guidance and schedule are the stated
ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
    ZImagePipeline,
)
from diffusers.pipelines.flux2 import pipeline_flux2
from l2p_arch import FAMILIES, ArchError, L2PPipeline, convert
from l2p_arch.sampling.schedule import flow_schedule
from l2p_mini.architecture import write_untrained_source
from PIL import Image

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
PROMPTS = ["a red circle", "two blue squares left of a green star on a gray background"]


@pytest.fixture(scope="module")
def pipeline(untrained_source: Path, tmp_path_factory: pytest.TempPathFactory) -> L2PPipeline:
    out = tmp_path_factory.mktemp("pipeline") / "out"
    convert(untrained_source, out, head_channels=(8, 8, 16, 16))
    loaded = L2PPipeline.from_pretrained(out)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_an_image_does_not_depend_on_its_batch(pipeline: L2PPipeline) -> None:
    together = pipeline(PROMPTS, num_images_per_prompt=2, seeds=[1, 2, 3, 4], **SMALL).images
    alone = torch.cat([pipeline(PROMPTS[n // 2], seeds=[n + 1], **SMALL).images for n in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(
        together, pipeline(PROMPTS, num_images_per_prompt=2, seeds=[1, 2, 3, 4], **SMALL).images
    )


def test_text_is_encoded_as_the_source_pipeline_encodes_it(
    pipeline: L2PPipeline, untrained_source: Path
) -> None:
    source = ZImagePipeline.from_pretrained(untrained_source)
    with torch.no_grad():
        expected, _ = source.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    for ours, theirs in zip(pipeline.encode(PROMPTS), expected, strict=True):
        torch.testing.assert_close(ours["caption"], theirs, rtol=1e-4, atol=1e-5)


def test_guidance_is_negative_plus_scale_times_the_difference(pipeline: L2PPipeline) -> None:
    positive, negative = pipeline.encode(["a red circle", "a blue square"])
    states: list[torch.Tensor] = []
    options = SMALL | {"num_inference_steps": 1}
    for scale in (1.0, 3.0):
        out = pipeline(
            prompt_conditioning=[positive],
            negative_conditioning=[negative],
            guidance_scale=scale,
            seeds=[5],
            **options,
        )
        states.append(out.images)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(5))[None]
    with torch.no_grad():
        pos = pipeline.transformer(noise, torch.ones(1), [positive])
        neg = pipeline.transformer(noise, torch.ones(1), [negative])
    torch.testing.assert_close(states[0], noise - pos, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states[1], noise - (neg + 3 * (pos - neg)), rtol=1e-4, atol=1e-4)


def test_the_noise_shift_bends_the_schedule_and_only_for_this_call(pipeline: L2PPipeline) -> None:
    def sigmas(**options: Any) -> list[float]:
        seen: list[float] = []
        pipeline("a", seeds=[0], on_step=lambda _, sigma, __: seen.append(sigma), **(SMALL | options))
        return seen

    own = sigmas(num_inference_steps=4)
    even = np.linspace(1, 0.25, 4)
    np.testing.assert_allclose(
        own, 3 * even / (1 + 2 * even), rtol=1e-6
    )  # the source's scheduler has shift 3
    np.testing.assert_allclose(sigmas(num_inference_steps=4, noise_shift=1), even, rtol=1e-6)
    np.testing.assert_allclose(sigmas(num_inference_steps=4), own)


def test_prompts_may_be_empty_and_negative_ones_none(pipeline: L2PPipeline) -> None:
    options = SMALL | {"seeds": [3], "num_inference_steps": 1}
    wanted = pipeline([""], negative_prompt=[""], **options).images
    assert torch.equal(pipeline("", negative_prompt=None, **options).images, wanted)
    assert len(pipeline.encode("abc")) == 1
    one_for_all = pipeline(
        ["a", "b"], negative_conditioning=pipeline.encode("c"), **SMALL | {"seeds": [1, 2]}
    )
    each = pipeline(["a", "b"], negative_prompt=["c", "c"], **SMALL | {"seeds": [1, 2]})
    torch.testing.assert_close(one_for_all.images, each.images, rtol=1e-4, atol=1e-4)
    with pytest.raises(ArchError, match="3 negative prompts for 2 prompts; give one text, or as many"):
        pipeline(["a", "b"], negative_prompt=["c"] * 3, **SMALL)
    for nothing in (None, []):
        with pytest.raises(ArchError, match="nothing to draw"):
            pipeline(nothing, **SMALL)


FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchHeunDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        DPMSolverMultistepScheduler(flow_shift=3.0, **FLOW),  # SANA's own
        UniPCMultistepScheduler(**FLOW),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_flow_matching_schedulers_reach_the_image(pipeline: L2PPipeline, scheduler: Any) -> None:
    own, x_0 = pipeline.scheduler, torch.rand(1, 3, 32, 32) * 2 - 1
    # the exact velocity towards one image: whatever the scheduler, sampling must end there
    forward = pipeline.transformer.forward
    pipeline.transformer.forward = lambda x_t, sigma, _: (x_t - x_0) / sigma.view(-1, 1, 1, 1)
    try:
        pipeline.scheduler = scheduler
        for options in ({}, {"noise_shift": 2.0}, {"image": torch.zeros(1, 3, 32, 32), "strength": 0.5}):
            steps = SMALL | {"num_inference_steps": 6, "guidance_scale": 1.0}
            image = pipeline("a", seeds=[0], **(steps | options)).images
            torch.testing.assert_close(image, x_0, rtol=0, atol=2e-2)
    finally:
        pipeline.scheduler, pipeline.transformer.forward = own, forward


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize(("steps", "shift"), [(8, 1.0), (60, 20.0), (100, 12.0), (200, 6.0)])
def test_a_constant_velocity_leads_to_the_image_however_long_and_shifted_the_schedule(
    pipeline: L2PPipeline, monkeypatch: pytest.MonkeyPatch, scheduler: Any, steps: int, shift: float
) -> None:
    """A velocity that does not depend on x_t corrects nothing that the schedule gets wrong."""
    x_0 = torch.rand(1, 3, 32, 32) * 2 - 1
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))[None]
    monkeypatch.setattr(pipeline, "scheduler", scheduler(**FLOW))
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *_: noise - x_0)
    options = SMALL | {"num_inference_steps": steps, "guidance_scale": 1.0, "noise_shift": shift}
    image = pipeline("a", seeds=[0], **options).images
    torch.testing.assert_close(image, x_0, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "settings", [{}, {"use_flow_sigmas": True}, {"use_flow_sigmas": True, "prediction_type": "v_prediction"}]
)
def test_a_scheduler_of_another_kind_is_refused(
    pipeline: L2PPipeline, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(pipeline, "scheduler", DPMSolverMultistepScheduler(**settings))
    with pytest.raises(ArchError, match="DPMSolverMultistepScheduler does not sample by flow matching"):
        pipeline("a", seeds=[0], **SMALL)


def test_a_shift_that_was_set_on_the_scheduler_counts(pipeline: L2PPipeline) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(6.0)
    options: dict[str, Any] = {"image_tokens": 4, "device": torch.device("cpu"), "changes": {}}
    ours = flow_schedule(scheduler, 4, noise_shift=None, **options)
    even = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    torch.testing.assert_close(ours.sigmas, 6 * even / (1 + 5 * even))
    terminal = FlowMatchEulerDiscreteScheduler(shift_terminal=0.02)  # Qwen-Image's
    assert flow_schedule(terminal, 1, noise_shift=None, **options).sigmas.tolist() == [1, 0]


def test_diffusers_callbacks_see_change_and_end_the_sampling(pipeline: L2PPipeline) -> None:
    options = SMALL | {"num_inference_steps": 3, "guidance_scale": 1.0, "seeds": [0]}
    states: list[torch.Tensor] = []

    def watch(pipe: L2PPipeline, step: int, timestep: torch.Tensor, values: dict[str, torch.Tensor]) -> Any:
        states.append(values["x_t"])
        return {"x_t": torch.zeros_like(values["x_t"])} if step == 2 else {}

    assert not pipeline("a", callback_on_step_end=watch, **options).images.any()
    assert len(states) == 3

    def stop(pipe: L2PPipeline, *_: Any) -> None:
        pipe._interrupt = True

    (stopped,) = pipeline("a", callback_on_step_end=stop, return_dict=False, **options)
    assert torch.equal(stopped, states[0])
    assert len(pipeline("a", **options).images) == 1  # and the next call is not stopped


def test_a_model_is_fetched_from_the_hub_without_pickles_and_code(
    pipeline: L2PPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub stands for itself as a directory: it cannot be reached from here."""
    pipeline.save_pretrained(tmp_path / "model")
    asked: list[Any] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(tmp_path / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = L2PPipeline.from_pretrained("someone/z-image-l2p", revision="v1", text_encoder=None)
    [(repository, options)] = asked
    assert repository == "someone/z-image-l2p"
    assert options["revision"] == "v1"
    assert {"*.bin", "*.pt", "*.py", "text_encoder/*"} <= set(options["ignore_patterns"])
    state = loaded.transformer.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in pipeline.transformer.state_dict().items())


def test_half_a_pipeline_says_what_it_cannot_do(pipeline: L2PPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    silent = L2PPipeline.from_pretrained(tmp_path / "model", text_encoder=None)
    with pytest.raises(ArchError, match="without its text_encoder; pass prompt_conditioning"):
        silent("a", **SMALL)
    blind = L2PPipeline.from_pretrained(tmp_path / "model", transformer=None)
    for call in (blind.encode, blind):
        with pytest.raises(ArchError, match="without its transformer"):
            call("a")


def test_guidance_rescale_survives_a_velocity_of_zero(pipeline: L2PPipeline) -> None:
    conditioning = pipeline.encode(["a", "b"])
    head, own = pipeline.transformer.detailer_head, pipeline.transformer.detailer_head.out_conv
    head.out_conv = torch.nn.Conv2d(own.in_channels, 3, 1)
    try:
        torch.nn.init.zeros_(head.out_conv.weight)
        torch.nn.init.zeros_(head.out_conv.bias)
        with torch.no_grad():
            velocity = pipeline._velocity(
                torch.randn(1, 3, 32, 32), torch.tensor(0.5), conditioning[:1], conditioning[1:], 3.0, 0.7
            )
        assert not velocity.any()
    finally:
        head.out_conv = own


def test_offloaded_components_give_the_same_image(pipeline: L2PPipeline) -> None:
    resident = pipeline("a red circle", seeds=[0], **SMALL).images
    pipeline.enable_model_cpu_offload(device="cpu")  # the hooks of a GPU, with the CPU in its place
    try:
        assert torch.equal(pipeline("a red circle", seeds=[0], **SMALL).images, resident)
    finally:
        pipeline.remove_all_hooks()


def test_a_model_draws_beyond_the_size_it_was_made_for(untrained_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_untrained_source(source, axes_lens=[64, 4, 4])  # rotary tables of 4 x 4 tokens: 64 x 64 px
    convert(source, tmp_path / "out", head_channels=(8, 8, 8, 8))
    pipeline = L2PPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    before = pipeline("a", seeds=[0], **SMALL).images
    doubled = pipeline("a", seeds=[0], **(SMALL | {"height": 128, "width": 192})).images
    assert doubled.shape == (1, 3, 128, 192)
    assert torch.isfinite(doubled).all()
    assert torch.equal(pipeline("a", seeds=[0], **SMALL).images, before)


def test_a_bfloat16_model_keeps_a_float32_state(pipeline: L2PPipeline) -> None:
    pipeline.transformer.to(torch.bfloat16)
    try:
        seen = []
        pipeline("a", seeds=[0], on_step=lambda _, __, x_t: seen.append(x_t.dtype), **SMALL)
        assert seen == [torch.float32, torch.float32]
    finally:
        pipeline.transformer.to(torch.float32)


def test_image_to_image_starts_from_the_noised_image(pipeline: L2PPipeline) -> None:
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    options = SMALL | {"num_inference_steps": 4, "seeds": [3], "guidance_scale": 1.0}
    assert torch.equal(pipeline("a", image=image, strength=0.0, **options).images, image)
    free = pipeline("a", **options).images
    torch.testing.assert_close(pipeline("a", image=image, strength=1.0, **options).images, free)
    states: list[tuple[float, torch.Tensor]] = []
    pipeline("a", image=image, strength=0.5, on_step=lambda _, *state: states.append(state), **options)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(3))[None]
    sigma, following = states[0][0], states[1][0]
    start = (1 - sigma) * image + sigma * noise
    assert len(states) == 2
    with torch.no_grad():
        velocity = pipeline.transformer(start, torch.tensor([sigma]), pipeline.encode(["a"]))
    torch.testing.assert_close(states[0][1], start + (following - sigma) * velocity, rtol=1e-4, atol=1e-4)


def test_pictures_are_resized_to_start_from(pipeline: L2PPipeline) -> None:
    picture = Image.new("RGB", (50, 40), (255, 0, 0))
    out = pipeline(["a", "b"], image=picture, strength=0.0, **SMALL).images
    assert torch.equal(out, torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(2, 3, 32, 32))


def test_an_image_is_the_same_start_in_every_form(pipeline: L2PPipeline) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(levels).permute(2, 0, 1)[None]
    forms = [
        Image.fromarray(levels),
        levels,
        levels[None],
        [levels],
        levels[::-1][::-1],
        levels / 255,
        [pixels[0]],
        pixels,
        pixels / 127.5 - 1,
    ]
    starts = [pipeline("a", image=form, strength=0.0, **SMALL).images for form in forms]
    for start in starts:
        torch.testing.assert_close(start, pixels / 127.5 - 1)


def test_full_guidance_rescale_restores_the_spread(pipeline: L2PPipeline) -> None:
    conditioning = pipeline.encode(["a red circle", "a blue square"])
    x_t, sigma = torch.randn(1, 3, 32, 32), torch.tensor(0.5)
    with torch.no_grad():
        plain = pipeline._velocity(x_t, sigma, conditioning[:1], [], 1.0, 0.0)
        guided = pipeline._velocity(x_t, sigma, conditioning[:1], conditioning[1:], 7.0, 1.0)
    torch.testing.assert_close(guided.std(), plain.std(), rtol=1e-4, atol=1e-5)


def test_output_types_hold_the_same_image(pipeline: L2PPipeline) -> None:
    state, pt, array, pil = (
        pipeline("a", seeds=[0], **(SMALL | {"output_type": kind})).images
        for kind in ("latent", "pt", "np", "pil")
    )
    assert state.abs().max() > 1  # an untrained model's, so that the clamping is seen
    torch.testing.assert_close(pt, (state.clamp(-1, 1) + 1) / 2)
    np.testing.assert_allclose(array[0], pt[0].permute(1, 2, 0).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.asarray(pil[0]) / 255, array[0], atol=1 / 255)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"height": 40}, "height 40 is not a multiple of patch size 16; use 32 or 48"),
        ({"seeds": [1, 2]}, "2 seeds or generators for 1 images"),
        ({"seeds": 1}, r"seeds is 1; give one per image, such as \[1\]"),
        ({"seeds": [1], "generator": torch.Generator()}, "seeds and generator were both given"),
        ({"prompt_conditioning": [{}]}, "prompt and prompt_conditioning were both given"),
        ({"prompt": None, "prompt_conditioning": []}, "the conditioning is empty"),
        (
            {"negative_prompt": "x", "negative_conditioning": [{}]},
            "negative_prompt and its conditioning were both given",
        ),
        ({"image": torch.ones(1, 3, 32, 32, dtype=torch.bool)}, "torch.bool values"),
        ({"prompt": ["a", None]}, "are not all text"),
        ({"max_sequence_length": 0}, "max_sequence_length is 0; wanted a whole number of at least 1"),
        ({"strength": 7.0}, "strength 7.0 is not between 0 and 1"),
        ({"image": ["a.png"]}, "image is a list of str; wanted PIL images"),
        ({"seeds": [2**64]}, "seed 18446744073709551616 has more than 64 bits"),
        ({"image": torch.full((1, 3, 32, 32), 255.0)}, "values up to 255; wanted floats in"),
        ({"image": np.zeros((32, 32, 4))}, "image has the shape"),
        ({"image": np.zeros((32, 32))}, r"image is an array of the shape \(32, 32\)"),
        ({"image": np.zeros((32, 32, 3), np.uint16)}, "and uint16; wanted"),
        ({"image": torch.full((1, 3, 32, 32), float("nan"))}, "values up to nan"),
        ({"image": [torch.zeros(3, 32, 32), torch.zeros(3, 16, 16)]}, "the images have the shapes"),
        ({"image": torch.zeros(1, 3, 32, 32, dtype=torch.long)}, "torch.int64 values"),
        ({"distilled_guidance_scale": 3.5}, "this z-image does not; use guidance_scale"),
        ({"output_type": "jpeg"}, "output_type 'jpeg'"),
        ({"num_inference_steps": 0}, "num_inference_steps 0"),
        ({"noise_shift": 0.0}, "noise_shift 0.0 must be positive"),
        ({"prompt": []}, "nothing to draw"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"image": torch.zeros(1, 3, 16, 16)}, "image has the shape"),
        ({"image": torch.zeros(1, 3, 32, 32), "strength": 2.0}, "strength 2.0 is not between 0 and 1"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ],
)
def test_wrong_calls_are_named(pipeline: L2PPipeline, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ArchError, match=complaint):
        pipeline(**({"prompt": "a"} | SMALL | options))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchLCMScheduler(),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
        DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", **FLOW),
    ],
    ids=["lcm", "stochastic euler", "sde", "single-step sde"],
)
def test_a_seed_decides_its_image_where_the_scheduler_draws_noise_in_every_step(
    pipeline: L2PPipeline, monkeypatch: pytest.MonkeyPatch, scheduler: Any
) -> None:
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    options = SMALL | {"num_inference_steps": 3}
    together = pipeline(["a", "b"], seeds=[7, 8], **options).images
    torch.manual_seed(123)
    alone = pipeline("b", seeds=[8], **options).images
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-4)
    given = pipeline("b", generator=torch.Generator().manual_seed(8), **options).images
    assert torch.equal(given, alone)
    assert not torch.equal(pipeline("b", seeds=[9], **options).images, alone)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler(use_karras_sigmas=True, **FLOW),
        DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", **FLOW),
        DEISMultistepScheduler(**FLOW),
    ],
    ids=["karras", "short", "deis"],
)
def test_a_schedule_that_does_not_lead_to_the_image_is_refused(
    pipeline: L2PPipeline, monkeypatch: pytest.MonkeyPatch, scheduler: Any
) -> None:
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    with pytest.raises(ArchError, match="where flow matching goes from 1 to 0"):
        pipeline("a", **SMALL)


@pytest.mark.parametrize(("tokens", "steps"), [(4096, 4), (4096, 50), (16384, 50), (256, 28)])
def test_flux2_shifts_by_tokens_and_steps_as_its_own_pipeline(tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = flow_schedule(
        scheduler,
        steps,
        noise_shift=None,
        image_tokens=tokens,
        device=torch.device("cpu"),
        changes={},
        dynamic_shift=FAMILIES["flux2"].dynamic_shift,
    )
    mu = pipeline_flux2.compute_empirical_mu(tokens, steps)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    assert torch.equal(ours.sigmas, scheduler.sigmas)
