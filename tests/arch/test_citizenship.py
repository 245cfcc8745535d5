"""The model and the pipeline behave as diffusers' users and helpers expect it of one of theirs."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from l2p_arch import ArchError, CutPromptWarning, DetailerHead, L2PPipeline, L2PTransformer
from torch import Tensor

CALL: dict[str, Any] = {
    "height": 16,
    "width": 24,
    "num_inference_steps": 3,
    "seeds": [1],
    "output_type": "latent",
}


@pytest.fixture
def tiny_model(tiny_trunks: dict[str, dict[str, Any]]) -> Callable[[str], L2PTransformer]:
    """A function family -> model with the same weights at each call."""

    def make(family: str) -> L2PTransformer:
        torch.manual_seed(0)
        return L2PTransformer(family, tiny_trunks[family], 4, head_channels=(8, 8)).eval()

    return make


@pytest.fixture
def z_image(tiny_model: Callable[[str], L2PTransformer]) -> L2PTransformer:
    return tiny_model("z-image")


@pytest.fixture
def flux(tiny_model: Callable[[str], L2PTransformer]) -> L2PTransformer:
    return tiny_model("flux")


@pytest.fixture
def pipeline(z_image: L2PTransformer) -> L2PPipeline:
    made = L2PPipeline(transformer=z_image, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    made.set_progress_bar_config(disable=True)
    return made


def _sample(seed: int = 0) -> dict[str, Tensor]:
    return {"caption": torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))}


def _flux_inputs(sigma: float = 0.37, batch: int = 1) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(2)
    sample = {
        "text": torch.randn(3, 12, generator=generator),
        "pooled": torch.randn(10, generator=generator),
    }
    pixels = torch.randn(batch, 3, 16, 16, generator=generator)
    return pixels, torch.full((batch,), sigma), [sample] * batch


def test_the_result_comes_in_every_form_that_helpers_ask_for(z_image: L2PTransformer) -> None:
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.8]), [_sample(), _sample(1)]
    with torch.no_grad():
        bare = z_image(*inputs)
        assert torch.equal(z_image(*inputs, return_dict=False)[0], bare)
        assert torch.equal(z_image(*inputs, return_dict=True).sample, bare)
    assert bare.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("keywords", [True, False])
def test_a_config_builds_its_model_again_however_it_was_made(
    tiny_trunks: dict[str, dict[str, Any]], keywords: bool
) -> None:
    given: dict[str, Any] = {"family": "z-image", "trunk_config": tiny_trunks["z-image"], "patch_size": 8}
    model = L2PTransformer(**given) if keywords else L2PTransformer(*given.values())
    again = L2PTransformer.from_config(model.config)
    assert again.config["patch_size"] == 8
    assert {n: v.shape for n, v in again.state_dict().items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }


def test_layerwise_casting_leaves_head_and_embedder_in_their_dtype(z_image: L2PTransformer) -> None:
    inputs = torch.randn(1, 3, 16, 16), torch.tensor([0.5]), [_sample()]
    with torch.no_grad():
        whole = z_image(*inputs)
    z_image.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    kinds = {name: value.dtype for name, value in z_image.named_parameters()}
    kept = [name for name in kinds if name.startswith(("detailer_head.", "trunk.all_x_embedder."))]
    assert len(kept) > 10
    assert all(kinds[name] == torch.float32 for name in kept)
    assert sum(kind == torch.float8_e4m3fn for kind in kinds.values()) > 10
    with torch.no_grad():
        assert (z_image(*inputs) - whole).norm() < 0.1 * whole.norm()


def test_pad_tokens_of_a_model_from_scratch_are_values(
    tiny_model: Callable[[str], L2PTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def poisoned(*size: Any, **options: Any) -> Tensor:
        made = empty(*size, **options)
        return made.fill_(float("nan")) if made.is_floating_point() and not made.is_meta else made

    monkeypatch.setattr(torch, "empty", poisoned)
    trunk = tiny_model("z-image").trunk
    for token in (trunk.x_pad_token, trunk.cap_pad_token):
        assert 0 < token.std() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_share_a_model_without_hearing_each_others_time(
    flux: L2PTransformer, dtype: torch.dtype
) -> None:
    model = flux.to(dtype)
    sigmas = [0.05, 0.35, 0.65, 0.95]
    with torch.no_grad():
        alone = [model(*_flux_inputs(sigma)) for sigma in sigmas]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(25):
                if not torch.equal(model(*_flux_inputs(sigmas[number])), alone[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not torch.equal(alone[0], alone[1])


def test_a_time_in_parts_adds_up_to_the_time_in_every_dtype() -> None:
    from l2p_arch.families.running import _add_up, exact_time

    sigma = torch.cat([torch.rand(2000, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1])])
    for factor in (1, 1000):
        for dtype, exact in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
            parts = exact_time(sigma, factor, torch.empty(0, dtype=dtype))
            heard = _add_up(torch.nn.Identity(), (parts.to(dtype) * factor,))[0]
            wanted = sigma * factor
            assert torch.equal(heard, wanted) if exact else (heard - wanted).abs().max() < 1e-3 * factor / 10


def test_flux_compiles_as_a_whole(flux: L2PTransformer) -> None:
    inputs = _flux_inputs()
    with torch.no_grad():
        eager = flux(*inputs)
        compiled = torch.compile(flux, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*inputs), eager)


def test_the_head_exports_with_any_batch() -> None:
    head = DetailerHead(6, (4, 8))
    batch = torch.export.Dim("batch", min=1, max=64)
    inputs = torch.randn(2, 3, 16, 16), torch.randn(2, 6, 4, 4)
    exported = torch.export.export(head, inputs, dynamic_shapes=({0: batch}, {0: batch}))
    for count in (1, 5):
        inputs = torch.randn(count, 3, 16, 16), torch.randn(count, 6, 4, 4)
        torch.testing.assert_close(exported.module()(*inputs), head(*inputs))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sigma": 0.5}, "sigma is float; wanted tensors"),
        ({"conditioning": torch.zeros(1, 5, 12)}, "conditioning is Tensor; wanted a list of one mapping"),
        ({"conditioning": [torch.zeros(5, 12)]}, "conditioning is list; wanted a list of one mapping"),
        ({"pixels": [0]}, "pixels are list"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(
    z_image: L2PTransformer, change: dict[str, Any], complaint: str
) -> None:
    given: Any = {"pixels": torch.zeros(1, 3, 8, 8), "sigma": torch.ones(1), "conditioning": [_sample()]}
    with pytest.raises(ArchError, match=complaint):
        z_image(**given | change)


def test_text_embeddings_pass_by_diffusers_names_and_bare(
    pipeline: L2PPipeline, flux: L2PTransformer
) -> None:
    positive, negative = _sample(0), _sample(1)
    wanted = pipeline(
        prompt_conditioning=[positive], negative_conditioning=[negative], guidance_scale=3.0, **CALL
    ).images
    embeds = pipeline.encode_prompt(prompt_embeds=[positive], negative_prompt_embeds=[negative])
    for given in (embeds, ([positive["caption"]], [negative["caption"]])):
        made = pipeline(
            prompt_embeds=given[0], negative_prompt_embeds=given[1], guidance_scale=3.0, **CALL
        ).images
        assert torch.equal(made, wanted)
    assert pipeline.encode_prompt(prompt_embeds=[positive], do_classifier_free_guidance=False)[1] == []
    with pytest.raises(ArchError, match="by our name and by diffusers'; give it once"):
        pipeline(prompt_embeds=[positive], prompt_conditioning=[positive], **CALL)
    of_flux = L2PPipeline(transformer=flux, scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ArchError, match="flux wants pooled text beside the embeddings"):
        of_flux(prompt_embeds=torch.zeros(1, 3, 12), guidance_scale=1.0, **CALL)


def test_noise_sigmas_and_size_may_be_the_callers(pipeline: L2PPipeline) -> None:
    options = CALL | {"prompt_conditioning": [_sample()], "guidance_scale": 1.0}
    noise = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1))[None]
    wanted = pipeline(**options).images
    assert pipeline.num_timesteps == 3
    assert pipeline.guidance_scale == 1.0
    assert not pipeline.do_classifier_free_guidance
    assert torch.equal(pipeline(**options | {"seeds": None, "latents": noise}).images, wanted)
    assert torch.equal(pipeline(**options | {"sigmas": [1.0, 2 / 3, 1 / 3]}).images, wanted)
    assert not torch.equal(pipeline(**options | {"sigmas": [1.0, 0.9]}).images, wanted)
    assert pipeline.num_timesteps == 2
    free = options | {"height": None, "width": None, "image": torch.zeros(1, 3, 20, 28), "strength": 0.0}
    assert pipeline(**free).images.shape == (1, 3, 20, 28)


def test_callbacks_get_the_state_by_the_names_they_ask_for(pipeline: L2PPipeline) -> None:
    options = CALL | {"prompt_conditioning": [_sample()], "guidance_scale": 1.0}
    seen: list[set[str]] = []

    def zero(pipe: Any, step: int, timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(set(values))
        return values | {"latents": torch.zeros_like(values["latents"])}

    asked = {"callback_on_step_end": zero, "callback_on_step_end_tensor_inputs": ["latents"]}
    assert not pipeline(**options, **asked).images.any()
    assert not pipeline(**options, callback_on_step_end=zero).images.any()
    assert seen[0] == {"latents"}
    assert seen[-1] == {"latents", "x_t"}
    with pytest.raises(ArchError, match="'noise_pred' is not one of x_t, latents"):
        pipeline(**options, callback_on_step_end_tensor_inputs=["noise_pred"])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_never_become_a_picture(
    pipeline: L2PPipeline, output_type: str, value: float
) -> None:
    with torch.no_grad():
        pipeline.transformer.detailer_head.out_conv.bias[1] = value
    options = CALL | {"prompt_conditioning": [_sample()], "output_type": output_type}
    with pytest.raises(ArchError, match="painted NaN or infinity in the image: look for damaged weights"):
        pipeline(guidance_scale=1.0, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["guidance_scale", "guidance_rescale", "noise_shift", "strength", "sigmas"])
def test_numbers_that_are_none_are_refused_before_the_first_step(
    pipeline: L2PPipeline, name: str, value: float
) -> None:
    pipeline.transformer.forward = None  # it must not come to that
    options = CALL | {"prompt_conditioning": [_sample()], "guidance_scale": 1.0}
    given = [1.0, value] if name == "sigmas" else value
    with pytest.raises(ArchError, match=name):
        pipeline(**options | {name: given, "image": torch.zeros(1, 3, 16, 24)})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"height": 16.0}, "height 16.0 is not a whole number of px"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5 must be a whole number"),
        ({"sigmas": [0.5, 0.7]}, "must go down from at most 1 to above 0"),
        ({"sigmas": [1.0, 0.0]}, "must go down from at most 1 to above 0"),
        ({"sigmas": []}, "must go down"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"latents is \(1, 3, 8, 8\); wanted noise of the shape"),
        ({"latents": torch.full((1, 3, 16, 24), float("nan"))}, "latents holds NaN"),
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5 is not between 0 and 1"),
        ({"prompt_embeds": [_sample()["caption"].sum()], "prompt_conditioning": None}, "a list of Tensor"),
    ],
)
def test_wrong_arguments_are_one_line(pipeline: L2PPipeline, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ArchError, match=complaint):
        pipeline(**CALL | {"prompt_conditioning": [_sample()], "guidance_scale": 1.0} | options)


def test_a_warning_names_the_longest_prompt_once_and_shortly() -> None:
    from l2p_arch.sampling.cut_prompts import CutPrompt

    cuts = [
        CutPrompt(
            prompt="a", tokens=700, read=500, lost="and nine more words of which nobody ever hears here"
        ),
        CutPrompt(prompt="b", tokens=600, read=500, lost="x"),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn(CutPromptWarning(cuts, 7), stacklevel=1)
    [message] = [str(each.message) for each in caught]
    assert "2 of 7 prompts are longer than the text encoder takes: 700 tokens, of which 500" in message
    assert '"and nine more words of which nobody ever ..."' in message
