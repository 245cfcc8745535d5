"""Prompts -> images -> PNG files that remember how they were made."""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from l2p_generate.errors import GenerateError
from l2p_generate.model import Sampling


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image and everything that makes it again."""

    image: Image.Image
    prompt: str
    negative_prompt: str
    seed: int
    sampling: Sampling
    model: str

    def text_chunks(self) -> PngInfo:
        """PNG metadata: `prompt` and, as JSON, `l2p`."""
        values = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            **asdict(self.sampling),
            "model": self.model,
            "software": f"l2p-generate {importlib.metadata.version('l2p-generate')}",
        }
        chunks = PngInfo()
        chunks.add_itxt("prompt", self.prompt)
        chunks.add_itxt("l2p", json.dumps(values, ensure_ascii=False))
        return chunks


def load_pipeline(model: Path, *, device: str | None = None, dtype: str = "auto") -> Any:
    """The pipeline, on a GPU where there is one (bfloat16), else on the CPU (float32)."""
    import torch
    from l2p_arch import L2PPipeline

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    pipeline = L2PPipeline.from_pretrained(
        model, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(
    pipeline: Any,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    model: str,
    seed: int,
    images_per_prompt: int = 1,
    negative_prompt: str = "",
    batch_size: int = 1,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Picture]:
    """`images_per_prompt` images of each prompt, with the seeds `seed`, `seed + 1`, ... for every prompt.

    Args:
        batch_size: images at once; it does not change them.
        on_step: called with (steps done, steps in all).
    """
    jobs = [(prompt, seed + number) for prompt in prompts for number in range(images_per_prompt)]
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    pictures: list[Picture] = []
    for number, batch in enumerate(batches):

        def step(done: int, _sigma: float, _state: Any, number: int = number) -> None:
            if on_step:
                on_step(
                    number * sampling.num_inference_steps + done + 1,
                    len(batches) * sampling.num_inference_steps,
                )

        images = pipeline(
            [prompt for prompt, _ in batch],
            seeds=[seed for _, seed in batch],
            negative_prompt=negative_prompt,
            on_step=step,
            **asdict(sampling),
        ).images
        pictures += [
            Picture(
                image=image,
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=image_seed,
                sampling=sampling,
                model=model,
            )
            for image, (prompt, image_seed) in zip(images, batch, strict=True)
        ]
    return pictures


def save(pictures: Sequence[Picture], output: Path) -> list[Path]:
    """Writes `output`, or `output-0000.png`, `output-0001.png`, ... for several pictures."""
    names = [output]
    if len(pictures) > 1:
        names = [
            output.with_name(f"{output.stem}-{number:04d}{output.suffix}") for number in range(len(pictures))
        ]
    for picture, path in zip(pictures, names, strict=True):
        _write(picture.image, path, picture.text_chunks())
    return names


def save_sheet(pictures: Sequence[Picture], output: Path, *, columns: int) -> Path:
    """Writes all pictures in one PNG, each with its prompt and seed under it."""
    side = max(192, min(512, max(picture.image.width for picture in pictures)))
    gap, caption = 12, 44
    rows = -(-len(pictures) // columns)
    width, height = gap + columns * (side + gap), gap + rows * (side + caption + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, picture in enumerate(pictures):
        x = gap + number % columns * (side + gap)
        y = gap + number // columns * (side + caption + gap)
        scale = side / max(picture.image.size)
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        size = (round(picture.image.width * scale), round(picture.image.height * scale))
        sheet.paste(picture.image.resize(size, method), (x, y))
        text = picture.prompt
        while font.getlength(text) > side:
            text = text[: -4 if text.endswith("...") else -1].rstrip(" .") + "..."
        draw.text((x, y + side + 4), f"{text}\nseed {picture.seed}", fill="#334155", font=font)
    _write(sheet, output, pictures[0].text_chunks())
    return output


def _write(image: Image.Image, path: Path, chunks: PngInfo) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        image.save(partial, format="PNG", pnginfo=chunks)
        partial.replace(path)
    except OSError as error:
        raise GenerateError(f"cannot write {path}: {error.strerror}; choose another -o") from None
