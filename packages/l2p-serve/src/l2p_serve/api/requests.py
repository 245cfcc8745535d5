"""What a client of the image endpoints asks for, as recipes; what is wrong, by the parameter's name."""

import math
import random
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import Request
from l2p_arch.errors import ArchError
from l2p_arch.sampling.settings import Sampling
from l2p_run.errors import UserError
from l2p_run.pictures import open_picture
from l2p_run.places import parse_json
from PIL import Image, ImageOps
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from l2p_serve.recipe import Recipe, start_from
from l2p_serve.text import check_text

LARGEST_BODY = 50 << 20  # bytes
_FORMATS = ("png", "jpeg", "webp")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_IGNORED = {"background", "moderation", "output_compression", "quality", "style", "user", "input_fidelity"}
_KNOWN = {
    *("prompt", "model", "n", "size", "response_format", "output_format", "seed", "steps", "guidance_scale"),
    *("negative_prompt", "strength", "noise_shift", "image", "image[]", "mask", "stream", "partial_images"),
}


class ApiError(UserError):
    """An answer other than success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that makes sense so far."""

    recipes: list[Recipe]
    as_url: bool
    format: str
    files: list[Path] = field(default_factory=list)  # uploads, to be removed afterwards


async def read_generation(request: Request, defaults: Sampling, model: str) -> Asked:
    """Read the body of POST /v1/images/generations."""
    try:
        values = parse_json((await _body(request)).decode("utf-8"), "the body")
    except UnicodeDecodeError:
        raise ApiError(400, "the body is no text in UTF-8; send JSON") from None
    if not isinstance(values, dict):
        raise ApiError(400, 'the body is no JSON object; send {"prompt": "..."}')
    return _asked(values, defaults, model)


async def _body(request: Request) -> bytes:
    """Return the body, of at most `LARGEST_BODY` bytes."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY:
            raise ApiError(413, f"the request is larger than {LARGEST_BODY >> 20} MiB")
    return bytes(content)


async def read_edit(request: Request, defaults: Sampling, model: str, folder: Path) -> Asked:
    """Read the body of POST /v1/images/edits: image-to-image, or inpainting where the mask, or else the
    picture itself, is transparent."""
    content, sent = await _body(request), False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:  # the client is asked whether it is still there by the real channel, not by this one
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    try:
        async with Request(request.scope, receive).form(max_files=3, max_fields=40) as form:
            values: dict[str, Any] = {}
            for key, value in form.multi_items():
                kept = await value.read() if isinstance(value, UploadFile) else value
                name = key.removesuffix("[]")
                if name in values:
                    raise ApiError(400, f"{name} was given twice; this model takes one", param=name)
                values[name] = kept
    except (HTTPException, KeyError, AssertionError) as error:
        words = getattr(error, "detail", "")
        raise ApiError(400, f"the body is no multipart form ({words}); send image and prompt so") from None
    image, mask = values.pop("image", None), values.pop("mask", None)
    for name, value in (("image", image), ("mask", mask)):
        if (name == "image" and value is None) or isinstance(value, str):
            raise ApiError(400, f"{name} is missing or no file; send a picture as a file", param=name)
    asked = _asked(values, defaults, model, has_image=True)
    return _with_picture(asked, values, bytes(image), mask, folder)


def _with_picture(
    asked: Asked, values: dict[str, Any], image: bytes, mask: bytes | None, folder: Path
) -> Asked:
    """Return the request with its pictures as files: a recipe names files by their content."""
    try:
        picture = open_picture(image, name="image")
        area = _transparent(image if mask is None else mask, "image" if mask is None else "mask")
    except UserError as error:
        raise ApiError(400, str(error), param="image" if str(error).startswith("image") else "mask") from None
    if mask is not None and area is None:
        raise ApiError(400, "mask has no transparent place, which is where to paint", param="mask")
    given = values.get("strength")
    strength = None if given is None else _real(values, "strength")  # before anything is written
    stem = f".{secrets.token_hex(16)}"  # not among the pictures that have an address
    files = [folder / f"{stem}-image.png"]
    picture.save(files[0])
    if area is not None:
        files.append(folder / f"{stem}-mask.png")
        area.resize(picture.size, Image.Resampling.NEAREST).save(files[1])
    recipe = asked.recipes[0]
    try:
        start = start_from(files[0], files[1] if area else None, strength)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    sampling = recipe.sampling
    if area is not None and values.get("size") in (None, "auto"):
        sampling = replace(sampling, width=picture.width, height=picture.height)
    recipes = [replace(each, sampling=sampling, **start) for each in asked.recipes]
    return replace(asked, recipes=recipes, files=files)


def _transparent(content: bytes, name: str) -> Image.Image | None:
    """Return white where a picture is transparent; None where it is nowhere."""
    open_picture(content, name=name)  # refuses what is no picture, or too large
    from io import BytesIO

    with Image.open(BytesIO(content)) as opened:
        if not opened.has_transparency_data:
            return None
        alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")  # as `open_picture` turns it
    return (
        alpha.point(lambda value: 255 - value)
        if alpha.histogram()[255] < alpha.width * alpha.height
        else None
    )


def _asked(values: dict[str, Any], defaults: Sampling, model: str, *, has_image: bool = False) -> Asked:
    """Return recipes of the parameters that both endpoints take."""
    unknown = [key for key in values if key not in _KNOWN | _IGNORED]
    if unknown:
        raise ApiError(400, f"unknown parameter {unknown[0][:100]!r}", param=unknown[0][:100])
    if values.get("stream") not in (None, False, "false"):
        raise ApiError(400, "stream is not supported; leave it out", param="stream")
    if (wanted := values.get("model")) not in (None, "", model):
        raise ApiError(
            404, f"the model {str(wanted)[:100]!r} does not exist; it is {model!r}", code="model_not_found"
        )
    prompt = values.get("prompt")
    negative = values.get("negative_prompt") or ""
    for name, text in (("prompt", prompt), ("negative_prompt", negative)):
        if not isinstance(text, str):
            raise ApiError(400, f"{name} must be a text", param=name)
        try:
            check_text(text, name)
        except UserError as error:
            raise ApiError(400, str(error), param=name) from None
    count = 1 if values.get("n") is None else _whole(values, "n", 1, 64)
    seed = values.get("seed")
    first = random.SystemRandom().randrange(2**31) if seed is None else _whole(values, "seed", 0, 2**32 - 1)
    recipe = Recipe(
        prompt=str(prompt).strip(),
        negative_prompt=negative.strip(),
        seed=first,
        sampling=_sampling(values, defaults),
    )
    form = values.get("output_format") or "png"
    if form not in _FORMATS:
        raise ApiError(400, f"output_format must be one of {', '.join(_FORMATS)}", param="output_format")
    response = values.get("response_format") or "url"
    if response not in ("url", "b64_json"):
        raise ApiError(400, "response_format must be url or b64_json", param="response_format")
    if values.get("strength") is not None and not has_image:
        raise ApiError(400, "strength is of /v1/images/edits; leave it out", param="strength")
    recipes = [replace(recipe, seed=first + number) for number in range(count)]
    return Asked(recipes=recipes, as_url=response == "url", format=form)


def _sampling(values: dict[str, Any], defaults: Sampling) -> Sampling:
    changes: dict[str, Any] = {}
    size = values.get("size") or "auto"
    if size != "auto":
        match = _SIZE.fullmatch(str(size))
        if match is None:
            raise ApiError(
                400, f"size is {str(size)[:40]!r}; wanted WIDTHxHEIGHT, such as 1024x1024", param="size"
            )
        changes = {"width": int(match[1]), "height": int(match[2])}
    if values.get("steps") is not None:
        changes["num_inference_steps"] = _whole(values, "steps", 1, 10_000)
    for name in ("guidance_scale", "noise_shift"):
        if values.get(name) is not None:
            changes[name] = _real(values, name)
    sampling = replace(defaults, **changes)
    try:
        sampling.check({"num_inference_steps": "steps"})
    except ArchError as error:
        raise ApiError(400, str(error), param=str(error).partition(" ")[0]) from None
    return sampling


def _whole(values: dict[str, Any], name: str, least: int, most: int) -> int:
    """Return a whole number; a form sends it as text."""
    given = values[name]
    if isinstance(given, str) and re.fullmatch(r"\d{1,20}", given):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise ApiError(
            400, f"{name} is {str(given)[:40]}; it must be a whole number from {least} to {most}", param=name
        )
    return given


def _real(values: dict[str, Any], name: str) -> float:
    given = values[name]
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ApiError(400, f"{name} is {str(given)[:40]!r}; it must be a number", param=name)
    return number
