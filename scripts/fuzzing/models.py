"""Areas `models` and `recipes`: model directories, safetensors headers, adapters, and pictures' recipes."""

import io
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.case import Case, Edit, encoded
from fuzzing.values import changed, damaged_text, json_bytes, json_values

PAINT = (
    "--steps",
    "1",
    "--guidance",
    "1",
    "--height",
    "16",
    "--width",
    "16",
    "--device",
    "cpu",
    "a",
    "-o",
    "o.png",
)
TRANSFORMER = "m/transformer/diffusion_pytorch_model.safetensors"
EVALUATE = ("l2p-evaluate", "patch-grid", "--model", "x=m", "--prompts", "n.jsonl", "-o", "out")
CONFIGS = (
    *("model_index.json", "transformer/config.json", "scheduler/scheduler_config.json", "sampling.json"),
    *("text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"),
)


def models(seeds: Path) -> st.SearchStrategy[Case]:
    """A pixel-space model, its source and a single file, with damage in configs, headers and weights."""
    of_a_model = st.sampled_from(
        [
            ("l2p-generate", "--model", "m", *PAINT),
            ("l2p-generate", "--model", "m", *PAINT),
            ("l2p-arch", "identify", "m", "--json"),
            ("l2p-arch", "export", "m", "out.safetensors", "--json"),
            ("l2p-arch", "quantise", "m", "out", "--json"),
            ("l2p-arch", "upscale", "m", "out", "--patch-size", "32", "--json"),
            (*EVALUATE, "--steps", "1", "--workers", "0", "--json"),
        ]
    )
    of_a_source = st.just(
        ("l2p-arch", "convert", "m", "out", "--head-channels", "8", "8", "16", "16", "--json")
    )
    header = _header(seeds / "run/model/transformer/diffusion_pytorch_model.safetensors")
    return st.one_of(
        _config_of(seeds / "run/model", "run/model", of_a_model),
        _config_of(seeds / "source", "source", of_a_source),
        st.builds(_headed, of_a_model, header),
        st.builds(
            _damaged, of_a_model, st.integers(0, 60_000), st.binary(min_size=1, max_size=9), st.booleans()
        ),
        st.builds(_missing, of_a_model, st.sampled_from(_files(seeds / "run/model"))),
        st.builds(_single, header),
        st.builds(_adapter, _header(seeds / "lora.safetensors")),
    )


def _files(model: Path) -> list[str]:
    return sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())


NAMED = {"n.jsonl": encoded(b'{"file_name": "a.png", "text": "a circle"}\n')}


@st.composite
def _config_of(draw: Any, model: Path, seed: str, commands: Any) -> Case:
    names = [name for name in CONFIGS if (model / name).is_file()]
    name = draw(st.sampled_from(names))
    content = (model / name).read_bytes()
    if len(content) < 20_000:
        made = draw(st.one_of(changed(json.loads(content)).map(json_bytes), damaged_text(content)))
    else:
        made = draw(damaged_text(content[:200] + content[-200:]))
    files = {f"m/{name}": encoded(made), **NAMED}
    return Case(area="models", command=draw(commands), copies={"m": seed}, files=files)


def _header(path: Path) -> st.SearchStrategy[str]:
    """The JSON of a safetensors file with other types, shapes, offsets and names."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    some = dict(list(header.items())[:6])
    values = st.one_of(
        json_values(),
        st.sampled_from(["F32", "F64", "BF16", "I8", "F8_E4M3", "U4", "X"]),
        st.lists(st.sampled_from([0, 1, 2, 16, -1, 2**31, 2**40, 2**62, 2**64]), max_size=4),
    )

    def whole(part: Any) -> str:
        rest = {name: value for name, value in header.items() if name not in some}
        return json.dumps({**part, **rest} if isinstance(part, dict) else part)

    texts = st.sampled_from(["", "{", "[]", "5", '{"a": 5}', "{" * 5000, '{"__metadata__": 5}', " " * 100])
    return st.one_of(changed(some, values).map(whole), texts)


def _headed(command: tuple[str, ...], header: str) -> Case:
    edits = (Edit(file=TRANSFORMER, header=header),)
    return Case(area="models", command=command, copies={"m": "run/model"}, files=dict(NAMED), edits=edits)


def _damaged(command: tuple[str, ...], offset: int, content: bytes, cut: bool) -> Case:
    edits = (Edit(file=TRANSFORMER, offset=offset, content=encoded(content), cut=cut),)
    return Case(area="models", command=command, copies={"m": "run/model"}, files=dict(NAMED), edits=edits)


def _missing(command: tuple[str, ...], name: str) -> Case:
    edits = (Edit(file=f"m/{name}", cut=True),)  # empty, as a full disk leaves it
    return Case(area="models", command=command, copies={"m": "run/model"}, files=dict(NAMED), edits=edits)


def _single(header: str) -> Case:
    edits = (Edit(file="f.safetensors", header=header),)
    copies = {"f.safetensors": "run/model/transformer/diffusion_pytorch_model.safetensors", "p": "source"}
    return Case(
        area="models", command=("l2p-arch", "import", "f.safetensors", "p", "out"), copies=copies, edits=edits
    )


def _adapter(header: str) -> Case:
    edits = (Edit(file="l.safetensors", header=header),)
    command = ("l2p-generate", "--model", "m", "--lora", "l.safetensors", *PAINT)
    return Case(
        area="models",
        command=command,
        copies={"m": "run/model", "l.safetensors": "lora.safetensors"},
        edits=edits,
    )


def recipes(seeds: Path) -> st.SearchStrategy[Case]:
    """PNG files whose recipe was edited, or whose bytes were, and prompt files for many pictures."""
    recipe = json.loads((seeds / "recipe.json").read_text())
    rows = [{"prompt": "a circle", "seed": 1}, {"prompt": "a ring"}]
    again = (
        "l2p-generate",
        "--model",
        "m",
        "--from-image",
        "r.png",
        "--device",
        "cpu",
        "-o",
        "o.png",
        "--json",
    )

    def carried(text: bytes) -> Case:
        files = {"r.png": encoded(_png(text.decode("utf-8", "replace")))}
        return Case(area="recipes", command=again, copies={"m": "run/model"}, files=files)

    def several(content: bytes) -> Case:
        command = (
            "l2p-generate",
            "--model",
            "m",
            "--prompts",
            "p.jsonl",
            *PAINT[:-3],
            "-o",
            "o.png",
            "--sheet",
        )
        return Case(
            area="recipes", command=command, copies={"m": "run/model"}, files={"p.jsonl": encoded(content)}
        )

    return st.one_of(
        changed(recipe, json_values(quick=True)).map(json_bytes).map(carried),
        damaged_text(json_bytes(recipe)).map(carried),
        changed(rows, json_values(quick=True)).map(lambda one: json.dumps(one).encode()).map(several),
        damaged_text(b'{"prompt": "a circle", "seed": 1}\na ring\n').map(several),
    )


def _png(text: str) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks, buffer = PngInfo(), io.BytesIO()
    chunks.add_itxt("l2p", text)
    Image.new("RGB", (16, 16)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
