"""The page itself, in Gradio: a form, the pictures, what was painted before."""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from l2p_arch.errors import ArchError
from l2p_arch.sampling.settings import Sampling
from l2p_run.errors import UserError
from PIL import Image, ImageChops

from l2p_serve.door.guard import Guard
from l2p_serve.errors import ServeError
from l2p_serve.limits import LARGEST_SEED
from l2p_serve.page.studio import Request, Studio
from l2p_serve.recipe import read_recipe

HISTORY = 48  # pictures of one visitor that the page shows
_DAY = 86_400  # s
# Gradio makes no more columns than there are pictures: the first one would be cut off below.
_STYLE = "#history .grid-container {grid-template-columns: repeat(8, minmax(0, 1fr)) !important}"


def build_page(studio: Studio) -> gr.Blocks:
    """Return the page of one studio."""
    has_source = studio.source is not None
    with gr.Blocks(
        title=f"L2P: {studio.painter.name}",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(600, _DAY),  # uploads and copies of a server that runs for weeks
    ) as page:
        gr.Markdown(f"## {studio.painter.name}\nText to pixels, without a VAE.")
        shown = gr.State([])  # files of this visitor, newest first
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                form = _form(studio)
            with gr.Column(scale=5), gr.Row():
                painted = _gallery("Pixel-space model", "painted")
                source = _gallery(f"Source: {studio.source_name}", "source", visible=has_source)
                if not has_source:  # over the whole width a single picture would be cut off below
                    gr.Column(min_width=240)
        gr.Markdown("#### Before\nChoose a picture to take its prompt, seed and settings.")
        history = gr.Gallery(
            show_label=False,
            elem_id="history",
            columns=8,
            height=190,
            format="png",
            object_fit="contain",
            allow_preview=False,
        )
        inputs = list(form["fields"].values())
        submit = _painter(studio, list(form["fields"]))
        gr.on(
            [form["button"].click, form["fields"]["prompt"].submit],
            submit,
            [*inputs, shown],
            [painted, source, form["fields"]["seed"], shown, history],
            api_name="paint",
            concurrency_limit=1,
        )
        fields = form["fields"]
        fields["image"].change(
            _to_draw_on, [fields["image"]], [fields["mask"]], api_visibility="private", queue=False
        )
        reused = [form["fields"][name] for name in REUSED]
        history.select(_reuse, [shown], reused, api_visibility="private", queue=False)
    return page


def _gallery(title: str, name: str, *, visible: bool = True) -> gr.Gallery:
    with gr.Column(min_width=240, visible=visible):
        gr.Markdown(f"#### {title}")
        return gr.Gallery(
            show_label=False,
            elem_id=name,
            columns=2,
            height=440,
            format="png",
            object_fit="contain",
            preview=False,
        )


def _form(studio: Studio) -> dict[str, Any]:
    """Return the fields in the order of `Request`, and the button."""
    own, limits = studio.defaults, studio.limits
    brush = max(2, min(own.width, own.height) // 24)  # half of its width in the picture, px
    fields: dict[str, Any] = {
        "prompt": gr.Textbox(
            label="Prompt", lines=3, max_length=limits.characters, elem_id="prompt", autofocus=True
        )
    }
    button = gr.Button("Paint", variant="primary", elem_id="paint")
    with gr.Row():
        fields["seed"] = gr.Number(
            label="Seed", value=42, precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="seed", min_width=90
        )
        fields["new_seed"] = gr.Checkbox(
            label="New seed each time", value=False, elem_id="new-seed", min_width=90
        )
    fields["images"] = gr.Slider(1, limits.images, value=1, step=1, label="Images", visible=limits.images > 1)
    fields["with_source"] = gr.Checkbox(
        label="Paint with the source as well",
        value=studio.source is not None,
        visible=studio.source is not None,
    )
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            patch = studio.painter.pipeline.transformer.patch_size
            for name in ("width", "height"):
                fields[name] = gr.Slider(
                    patch,
                    limits.side,
                    value=getattr(own, name),
                    step=patch,
                    label=f"{name.title()} (px)",
                    min_width=200,
                )
        with gr.Row():
            fields["steps"] = gr.Slider(
                1, limits.steps, value=own.num_inference_steps, step=1, label="Steps", min_width=200
            )
            # What a student of a range has learned (l2p-train distill --guidance-range), else what is usual.
            learned = getattr(studio.painter.pipeline.transformer, "guidance_range", None)
            lowest, highest = learned or (1, 10)
            fields["guidance"] = gr.Slider(
                lowest, highest, value=own.guidance_scale, step=0.1, label="Guidance (1: off)", min_width=200
            )
            fields["shift"] = gr.Number(
                label="Noise shift (0: the model's)", value=own.noise_shift or 0, minimum=0, min_width=200
            )
        fields["negative_prompt"] = gr.Textbox(label="Negative prompt", max_length=limits.characters)
        fields["image"] = gr.Image(
            label="Start from a picture", type="filepath", height=160, sources=["upload", "clipboard"]
        )
        fields["strength"] = gr.Slider(0, 1, value=0.6, step=0.05, label="Strength (1: forget the picture)")
        gr.Markdown(
            "**Paint only here:** draw over the picture, and the rest of it stays as it is."
            " Strength 1 forgets what was there."
        )
        fields["mask"] = gr.ImageEditor(
            label="Paint only here",
            show_label=False,  # the tools would lie over it
            type="pil",
            sources=(),
            layers=False,
            transforms=(),
            brush=gr.Brush(colors=["#ff00aa"], color_mode="fixed", default_size=brush),
            elem_id="mask",
            height=360,
            interactive=True,
        )
        for number, adapter in enumerate(studio.painter.adapters):
            fields[f"adapter_{number}"] = gr.Slider(
                -2, 2, value=adapter.weight, step=0.05, label=f"Adapter {adapter.name} (0: off)"
            )
    return {"fields": fields, "button": button}


def _painter(studio: Studio, names: list[str]) -> Callable[..., Any]:
    """Return what the button does."""

    def submit(*values: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008 (Gradio reads it)
        *given, shown = values
        form = dict(zip(names, given, strict=True))
        try:
            answer = studio.paint(
                request_of(form, studio.defaults),
                lambda done, total: progress((done, total), desc="Painting"),
            )
        except (ArchError, UserError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
                words = "the memory is not enough for this picture; choose a smaller one"
            else:
                traceback.print_exc()
                words = "the server failed; its log says more"
            raise gr.Error(words, print_exception=False) from None
        for note in answer.notes:
            gr.Warning(note)
        shown = [str(path) for path, _ in reversed(answer.painted)] + list(shown)
        shown = shown[:HISTORY]
        painted, source = (
            [(str(path), f"seed {seed}") for path, seed in files] for files in (answer.painted, answer.source)
        )
        return painted, source, answer.painted[0][1], shown, shown

    return submit


def _to_draw_on(image: str | None) -> Any:
    """Return the picture to start from, as the ground on which the mask is drawn."""
    return {"background": image, "layers": [], "composite": image} if image else None


def _mask(drawn: Any) -> Image.Image | None:
    """Return white where something was drawn; None where nothing was."""
    layers = drawn.get("layers", []) if isinstance(drawn, dict) else []
    found = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value else 0)
        found = alpha if found is None else ImageChops.lighter(found, alpha)
    return found if found is not None and found.getbbox() else None


def request_of(form: dict[str, Any], defaults: Sampling) -> Request:
    """Return the form as a request; what it has no field for is the model's own.

    Raises:
        ServeError: a browser or a script sent something of another type.
    """
    try:
        adapters = [float(form[name] or 0) for name in form if name.startswith("adapter_")]
        return Request(
            prompt=str(form["prompt"] or ""),
            negative_prompt=str(form["negative_prompt"] or ""),
            seed=None if form["new_seed"] else int(form["seed"] or 0),
            images=int(form["images"]),
            with_source=bool(form["with_source"]),
            image=form["image"],
            strength=float(form["strength"]),
            mask=_mask(form["mask"]) if form["image"] else None,
            adapter_weights=tuple(adapters),
            sampling=replace(
                defaults,
                height=int(form["height"]),
                width=int(form["width"]),
                num_inference_steps=int(form["steps"]),
                guidance_scale=float(form["guidance"]),
                noise_shift=float(form["shift"]) or None,
            ),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ServeError(f"a setting is missing or no number ({error})") from None


REUSED = ("prompt", "negative_prompt", "seed", "new_seed", "width", "height", "steps", "guidance", "shift")


def _reuse(shown: list[str], chosen: gr.SelectData) -> list[Any]:
    """Return the form's values from the recipe of a picture."""
    from pathlib import Path

    recipe = read_recipe(Path(shown[chosen.index]))
    sampling = asdict(recipe.sampling)
    return [
        recipe.prompt,
        recipe.negative_prompt,
        recipe.seed,
        False,
        sampling["width"],
        sampling["height"],
        sampling["num_inference_steps"],
        sampling["guidance_scale"],
        sampling["noise_shift"] or 0,
    ]


def make_app(
    page: gr.Blocks,
    studio: Studio,
    *,
    auth: list[tuple[str, str]],
    queue: int,
    names: frozenset[str] | None = None,
    allowed: Iterable[str] = (),
) -> FastAPI:
    """Return the page as a web application.

    Args:
        auth: (user, password) pairs; empty lets everyone in who can connect.
        queue: requests that may wait; more are turned away.
        names, allowed: see `guard.Guard`.
    """
    page.queue(max_size=queue, default_concurrency_limit=1)
    app: FastAPI = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        auth=auth or None,
        show_error=False,
        ssr_mode=False,
        footer_links=["api"],
        run_history=False,  # it would offer to send pictures to another host
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        max_file_size="20mb",
        allowed_paths=[str(studio.folder)],
        css=_STYLE,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    app.add_middleware(Guard, names=names, allowed=tuple(allowed), sessions=True)
    return app
