"""`Recipe`: everything that makes one image again, and how a PNG file carries it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from l2p_run.errors import one_line, raised_as
from l2p_run.pictures import open_picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from l2p_generate.errors import GenerateError
from l2p_generate.model import Sampling

CHUNK = "l2p"
"""The PNG text chunk that holds the recipe as JSON."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One image.

    The last bits of an image depend on the batch that it is computed in, so the recipe of an image that was
    not painted alone also names its companions.
    """

    prompt: str
    seed: int
    sampling: Sampling
    negative_prompt: str = ""
    image: str | None = None  # image-to-image: the file that it started from
    image_sha256: str | None = None
    strength: float | None = None
    model: str = ""  # its name, for people
    weights: str = ""  # `model.weights_fingerprint`
    dtype: str = ""
    device: str = ""
    versions: Mapping[str, str] | None = None
    batch: tuple[tuple[str, int], ...] = ()  # (prompt, seed) of the whole batch; empty: painted alone
    place: int = 0  # of this image in its batch

    def to_json(self) -> str:
        """The content of the `l2p` chunk: flat, without what is not set."""
        values = asdict(self)
        sampling = values.pop("sampling")
        return json.dumps(
            {key: value for key, value in {**values, **sampling}.items() if value not in (None, "", ())},
            ensure_ascii=False,
        )

    def parameters(self) -> str:
        """The same for people and for other tools, in the form that web UIs write as "parameters"."""
        sampling = self.sampling
        settings = {
            "Steps": sampling.num_inference_steps,
            "Sampler": "Euler",
            "CFG scale": sampling.guidance_scale,
            "Seed": self.seed,
            "Size": f"{sampling.width}x{sampling.height}",
            "Shift": sampling.noise_shift,
            "Denoising strength": self.strength,
            "Model hash": self.weights,
            "Model": self.model,
        }
        shown = ", ".join(f"{key}: {value}" for key, value in settings.items() if value not in (None, ""))
        negative = f"Negative prompt: {self.negative_prompt}\n" if self.negative_prompt else ""
        return f"{self.prompt}\n{negative}{shown}"

    def chunks(self) -> PngInfo:
        """PNG metadata: `prompt`, `parameters` and the recipe."""
        chunks = PngInfo()
        chunks.add_itxt("prompt", self.prompt)
        chunks.add_itxt("parameters", self.parameters())
        chunks.add_itxt(CHUNK, self.to_json())
        return chunks


def read_recipe(path: Path) -> Recipe:
    """The recipe that a PNG file carries.

    Raises:
        GenerateError: no such file, no image, or one that was not made here.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(CHUNK)
    except FileNotFoundError:
        raise GenerateError(f"{path} does not exist; give a PNG that l2p-generate wrote") from None
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raised_as(GenerateError)(open_picture)(path)  # says what is wrong with it, where it knows
        raise GenerateError(f"the texts in {path} cannot be read ({one_line(error, 120)})") from None
    if text is None:
        raise GenerateError(
            f"{path} carries no recipe (PNG text chunk {CHUNK!r}); only files written by l2p-generate do,"
            " and editors or web sites may remove it"
        )
    try:
        values = json.loads(text)
        sampling = Sampling(
            **{field.name: values[field.name] for field in fields(Sampling) if field.name in values}
        )
        known = {field.name for field in fields(Recipe)} - {"sampling"}
        rest = {key: value for key, value in values.items() if key in known}
        rest["batch"] = tuple((str(prompt), int(seed)) for prompt, seed in rest.get("batch", ()))
        return Recipe(sampling=sampling, **rest)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GenerateError(f"the recipe in {path} is damaged ({error}); give another file") from None


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise GenerateError(f"cannot read {path}: {error.strerror}") from None


def versions() -> dict[str, str]:
    """Of what decides an image's last bits."""
    from importlib.metadata import version

    return {name: version(name) for name in ("l2p-generate", "torch", "diffusers", "transformers")}


def provenance(recipe: Recipe, *, device: str) -> dict[str, Any]:
    """What differs here from where `recipe` was painted, as {what: (there, here)}."""
    here = {**versions(), "device": device}
    there = {**(recipe.versions or {}), "device": recipe.device}
    return {key: (there[key], here[key]) for key in here if there.get(key) and there[key] != here[key]}
