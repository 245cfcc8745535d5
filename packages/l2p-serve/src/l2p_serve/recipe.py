"""`Recipe`: everything that makes one image again, and how a PNG file carries it."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_arch.sampling.settings import Sampling
from l2p_run import hashes
from l2p_run.errors import UserError, one_line
from l2p_run.pictures import open_picture
from l2p_run.places import is_file, parse_json
from l2p_run.settings import LARGEST_SEED, convert
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from l2p_serve.errors import ServeError
from l2p_serve.text import check_text

CHUNK = "l2p"
"""The PNG text chunk that holds the recipe as JSON."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA on top of a model."""

    file: str
    sha256: str
    weight: float

    @property
    def name(self) -> str:
        """Return text for people."""
        return Path(self.file).stem


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One image.

    The last bits of an image depend on the batch that it is computed in, so the recipe of an image that was
    not painted alone also names its companions. Files are known by their content: they may be moved.
    """

    prompt: str
    seed: int
    sampling: Sampling
    negative_prompt: str = ""
    image: str | None = None  # image-to-image: the file that it started from
    image_sha256: str | None = None
    strength: float | None = None  # None with a mask: 1
    mask: str | None = None  # inpainting: the file whose white is painted
    mask_sha256: str | None = None
    adapters: tuple[Adapter, ...] = ()
    model: str = ""  # its name, for people
    weights: str = ""  # `fingerprint.weights_hash`
    dtype: str = ""
    device: str = ""
    versions: Mapping[str, str] | None = None
    batch: tuple[tuple[str, int], ...] = ()  # (prompt, seed) of the whole batch; empty: painted alone
    place: int = 0  # of this image in its batch

    def to_json(self) -> str:
        """Return the content of the `l2p` chunk: flat, without what is not set."""
        import json

        values = asdict(self)
        sampling = values.pop("sampling")
        return json.dumps(
            {key: value for key, value in {**values, **sampling}.items() if value not in (None, "", ())},
            ensure_ascii=False,
        )

    def parameters(self) -> str:
        """Return the same for people and for other tools, in the form that web UIs write as "parameters"."""
        sampling = self.sampling
        hashes = ", ".join(f"{adapter.name}: {adapter.sha256[:12]}" for adapter in self.adapters)
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
            "Lora hashes": f'"{hashes}"' if hashes else None,
        }
        shown = ", ".join(f"{key}: {value}" for key, value in settings.items() if value not in (None, ""))
        negative = f"Negative prompt: {self.negative_prompt}\n" if self.negative_prompt else ""
        loras = "".join(f" <lora:{adapter.name}:{adapter.weight:g}>" for adapter in self.adapters)
        return f"{self.prompt}{loras}\n{negative}{shown}"

    def chunks(self) -> PngInfo:
        """Return PNG metadata: `prompt`, `parameters` and the recipe."""
        chunks = PngInfo()
        chunks.add_itxt("prompt", self.prompt)
        chunks.add_itxt("parameters", self.parameters())
        chunks.add_itxt(CHUNK, self.to_json())
        return chunks

    def check(self, where: str) -> None:
        """Refuse values that no command line could have given; `where` names the recipe in errors."""
        check_text(self.prompt, f"{where}: the prompt")
        check_text(self.negative_prompt, f"{where}: the negative prompt")
        self.sampling.check({one.name: f"{where}: {one.name}" for one in fields(Sampling)})
        check_seed(self.seed, f"{where}: seed")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ServeError(f"{where}: strength {self.strength} is not between 0 and 1")


def check_seed(seed: int, what: str) -> int:
    """Return the seed, if every generator takes it."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        shown = str(seed) if not isinstance(seed, int) or abs(seed) < 10**25 else "a huge number"
        raise ServeError(f"{what} is {shown[:40]}; it must be a whole number from 0 to 2**63 - 1")
    return seed


def read_recipe(path: Path) -> Recipe:
    """Return the recipe that a PNG file carries.

    Raises:
        ServeError: no such file, no image, or one that was not made here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs: nothing is decoded for the text
            with Image.open(path) as image:
                text = getattr(image, "text", {}).get(CHUNK)
    except FileNotFoundError:
        raise ServeError(f"{path} does not exist; give a PNG that l2p-generate wrote") from None
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        open_picture(path)  # says what is wrong with it, where it knows
        raise ServeError(f"the texts in {path} cannot be read ({one_line(error, 120)})") from None
    if text is None:
        raise ServeError(
            f"{path} carries no recipe (PNG text chunk {CHUNK!r}); only files written by l2p-generate do,"
            " and editors or web sites may remove it"
        )
    try:
        recipe = _from_json(parse_json(str(text), "it"))
        recipe.check("it")
        return recipe
    except (UserError, ArchError) as error:
        raise ServeError(f"the recipe in {path} is damaged ({error}); give another file") from None


def _from_json(values: Any) -> Recipe:
    """Return a recipe from its JSON; unknown keys are those of a later version, and left out."""
    if not isinstance(values, dict):
        raise ServeError("it is no JSON object")
    hints = {one.name: one.type for one in fields(Recipe)} | {"versions": dict[str, str] | None}
    own = {key: convert(values[key], hints[key], key) for key in hints if key in values and key != "sampling"}
    missing = [key for key in ("prompt", "seed") if key not in own]
    if missing:
        raise ServeError(f"it lacks {missing[0]}")
    sampling = {one.name: values[one.name] for one in fields(Sampling) if one.name in values}
    if not 0 <= own.get("place", 0) < max(1, len(own.get("batch", ()))):
        raise ServeError("its place is not in its batch")
    return Recipe(sampling=Sampling(**sampling), **own)


def start_from(image: Path | None, mask: Path | None, strength: float | None) -> dict[str, Any]:
    """Return the fields of a recipe that image-to-image and inpainting set."""
    if image is None:
        return {}
    found = {"image": str(image), "image_sha256": sha256_of(image, "image")}
    if mask is not None:
        return found | {"mask": str(mask), "mask_sha256": sha256_of(mask, "mask"), "strength": strength}
    return found | {"strength": 0.6 if strength is None else strength}


def sha256_of(path: Path, flag: str) -> str:
    """Return the content of a picture to start from, or of a mask, which is how a recipe knows it."""
    if not is_file(path):
        what = "is no file" if path.exists() else "does not exist"
        role = "the picture to start from" if flag == "image" else "a picture that is white where to paint"
        raise ServeError(f"--{flag} {path} {what}; give {role}")
    return hashes.of_file(path)


def read_adapter(file: Path, weight: float) -> Adapter:
    """Return a LoRA that is there."""
    if not is_file(file):
        what = "is no file" if file.exists() else "does not exist"
        raise ServeError(f"--lora {file} {what}; give a safetensors file, as FILE or FILE:WEIGHT")
    return Adapter(file=str(file), sha256=hashes.of_file(file), weight=weight)


def versions() -> dict[str, str]:
    """Return the versions of what decides an image's last bits."""
    from importlib.metadata import version

    return {name: version(name) for name in ("l2p-arch", "torch", "diffusers", "transformers")}


def provenance(recipe: Recipe, *, device: str) -> dict[str, Any]:
    """Return what differs here from where `recipe` was painted, as {what: (there, here)}."""
    here = {**versions(), "device": device}
    there = {**(recipe.versions or {}), "device": recipe.device}
    return {key: (there[key], here[key]) for key in here if there.get(key) and there[key] != here[key]}
