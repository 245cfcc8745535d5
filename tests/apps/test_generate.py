"""l2p-generate: every way to ask for a picture, and the picture that knows how it was made."""

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import l2p_mini.paths
import pytest
from l2p_generate.cli import main
from l2p_serve.recipe import read_recipe
from PIL import Image

PROMPT = "two red circles on a gray background"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_from_image_paints_the_same_pixels(untrained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(untrained_run)]
    assert (
        main([*model, PROMPT, "--seed", "7", "--steps", "2", "--negative-prompt", "a ring", "-o", "a.png"])
        == 0
    )
    assert main([*model, "--from-image", "a.png", "-o", "b.png"]) == 0
    assert "identical to a.png" in capsys.readouterr().err
    assert _pixels("a.png") == _pixels("b.png")
    assert read_recipe(Path("a.png")) == read_recipe(Path("b.png"))
    assert main([*model, "--from-image", "a.png", "--seed", "8", "-o", "c.png"]) == 0
    assert "identical" not in capsys.readouterr().err
    assert _pixels("a.png") != _pixels("c.png")
    assert read_recipe(Path("c.png")).negative_prompt == "a ring"


def test_what_saves_memory_changes_no_image(untrained_run: Path) -> None:
    model = ["--model", str(untrained_run), PROMPT, "--seed", "7", "--steps", "2", "--height", "128"]
    assert main([*model, "-o", "a.png"]) == 0
    assert main([*model, "--cpu-offload", "--tile", "32", "-o", "b.png"]) == 0
    difference = [abs(one - two) for one, two in zip(_pixels("a.png"), _pixels("b.png"), strict=True)]
    assert max(difference) <= 1
    assert read_recipe(Path("a.png")).sampling == read_recipe(Path("b.png")).sampling


def test_guidance_for_a_distilled_model_is_refused_by_another(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run), PROMPT, "--steps", "1"]
    assert main([*model, "--distilled-guidance", "3.5"]) == 2
    assert "is for models that embed their guidance, and this z-image does not" in capsys.readouterr().err


def test_an_image_of_a_batch_is_painted_again_to_the_bit(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run / "model")]
    assert main([*model, PROMPT, "a ring", "-n", "2", "--batch-size", "3", "-o", "a.png"]) == 0
    assert main([*model, "--from-image", "a-0001.png", "-o", "b.png"]) == 0
    assert "identical to a-0001.png" in capsys.readouterr().err
    assert (read_recipe(Path("b.png")).prompt, read_recipe(Path("b.png")).seed) == (PROMPT, 43)
    assert read_recipe(Path("a-0003.png")).batch == ()  # alone in the last batch


def test_image_to_image_starts_from_the_picture(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run)]
    Image.new("RGB", (96, 96), (10, 200, 30)).save("green.png")
    assert main([*model, PROMPT, "--image", "green.png", "--strength", "0", "-o", "kept.png"]) == 0
    assert Image.open("kept.png").getcolors() == [(64 * 64, (10, 200, 30))]
    assert main([*model, PROMPT, "--image", "green.png", "--strength", "0.7", "-o", "a.png"]) == 0
    Path("green.png").rename("moved.png")
    assert main([*model, "--from-image", "a.png"]) == 2
    assert "green.png does not exist" in capsys.readouterr().err
    assert main([*model, "--from-image", "a.png", "--image", "moved.png", "-o", "b.png"]) == 0
    assert "identical to a.png" in capsys.readouterr().err


def test_prompts_come_from_arguments_files_and_stdin(
    untrained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["a ring", "", json.dumps({"prompt": "a cross", "seed": 9})]
    Path("prompts.txt").write_text("\n".join(rows))
    common = ["--model", str(untrained_run), "--steps", "1", "--json"]
    assert main([*common, PROMPT, "--prompts", "prompts.txt"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [(row["prompt"], row["seed"]) for row in images] == [(PROMPT, 42), ("a ring", 42), ("a cross", 9)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a ring\n"))
    assert main([*common, "--prompts", "-"]) == 0
    assert [row["prompt"] for row in json.loads(capsys.readouterr().out)["images"]] == ["a ring"]


def test_a_contact_sheet_holds_every_picture_and_its_parameters(untrained_run: Path) -> None:
    arguments = ["--model", str(untrained_run), "--steps", "1", "--sheet", "-n", "3", PROMPT, "a ring"]
    assert main([*arguments, "-o", "new/sheet.png"]) == 0
    sheet = Image.open("new/sheet.png")
    assert sheet.size == (12 + 3 * 204, 12 + 2 * (192 + 44 + 12))
    assert sheet.text["parameters-0005"].startswith(
        "a ring\nSteps: 1, Sampler: Euler, CFG scale: 1.5, Seed: 44"
    )


def test_a_published_single_file_needs_only_the_components(
    untrained_run: Path,
    untrained_source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from l2p_arch import export_public

    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    export_public(untrained_run / "model", "model-1k-merge.safetensors")
    size = ["--height", "64", "--width", "64", "--steps", "3", "--guidance", "1.5", "--shift", "3"]
    file = ["--model", "model-1k-merge.safetensors", PROMPT, *size]
    assert main(file) == 2
    assert "brings no text encoder; add --components" in capsys.readouterr().err
    assert main([*file, "--components", str(untrained_source), "-o", "file.png"]) == 0
    assert "importing the single file, once" in capsys.readouterr().err
    assert main([*file, "--components", str(untrained_source), "-o", "again.png"]) == 0
    assert "importing" not in capsys.readouterr().err
    assert main(["--model", str(untrained_run), PROMPT, "-o", "directory.png"]) == 0
    assert _pixels("file.png") == _pixels("again.png") == _pixels("directory.png")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + body + _chunk(b"IEND", b"")


def _with_text(size: int) -> bytes:
    """A small PNG with a text that unpacks to `size` bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format="PNG")
    png = stream.getvalue()
    text = _chunk(b"iTXt", b"l2p\0\1\0\0\0" + zlib.compress(bytes(size)))
    return png[:33] + text + png[33:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to paint: give a prompt"),
        (["a ring", "--strength", "0.5"], "--strength is for image-to-image"),
        (["a ring", "--image", "none.png"], "--image none.png does not exist"),
        (["--prompts", "empty.txt"], "holds no prompt"),
        (["--prompts", "none.txt"], "--prompts none.txt does not exist; give a file with one prompt a line"),
        (["--prompts", "bad.jsonl"], 'bad.jsonl, line 2 needs a text "prompt"'),
        (["--prompts", "seed.jsonl"], "seed.jsonl, line 1: seed is -5; it must be a whole number from 0"),
        (["--prompts", "deep.jsonl"], "deep.jsonl, line 1 is nested too deeply"),
        (["--prompts", "latin.txt"], "latin.txt is no text in UTF-8 (byte 2 is 0xe9)"),
        (["--prompts", "."], "--prompts . is no file"),
        (["--prompts", "half.jsonl"], "the prompt is no valid text near 'a ring \\udfff'"),
        (["a r\udce9ng"], "the prompt is no valid text near 'a r\\udce9ng'"),
        (["a ring", "--negative-prompt", "\udc80"], "the negative prompt is no valid text"),
        (["a ring", "--seed", str(2**63 - 1), "-n", "2"], "the last image's seed is 9223372036854775808"),
        (["a ring", "--height", "72"], "height 72 is not a multiple of patch size 16; use 64 or 80"),
        (["a ring", "--image", "."], "--image . is no file"),
        (["a ring", "--image", "empty.txt"], "is empty"),
        (["a ring", "--image", "bomb.png"], "bomb.png"),
        (["a ring", "--image", "texts.png"], "texts.png is not a readable image: its texts unpack to more"),
        (["--from-image", "texts.png"], "texts.png is not a readable image"),
        (["a ring", "--mask", "plain.png"], "--mask is for inpainting; add --image FILE"),
        (["a ring", "--lora", "none.safetensors:0.5"], "--lora none.safetensors does not exist"),
        (["a ring", "-o", "out.jpg"], "must end in .png"),
        (["a ring", "-o", "dir.png"], "-o dir.png is a folder"),
        (["a ring", "-o", "plain.png/x.png"], "cannot write to the folder plain.png"),
        (["--from-image", "plain.png"], "carries no recipe"),
        (["--from-image", "empty.txt"], "is not a readable image"),
        (["--from-image", "other.png"], "was made by other weights"),
        (["a ring", "--device", "cuda:77"], "--device cuda:77 cannot be used"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    untrained_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    from l2p_arch.sampling.settings import Sampling
    from l2p_serve.files import write_png
    from l2p_serve.recipe import Recipe

    Path("empty.txt").touch()
    Path("bad.jsonl").write_text('{"prompt": "a ring"}\n{"text": "a ring"}\n')
    Path("seed.jsonl").write_text('{"prompt": "a ring", "seed": -5}\n')
    Path("deep.jsonl").write_text('{"prompt": ' + "[" * 100_000)
    Path("latin.txt").write_bytes("prés".encode("latin-1"))
    Path("half.jsonl").write_text('{"prompt": "a ring \\udfff"}\n')
    Path("dir.png").mkdir(exist_ok=True)
    Path("bomb.png").write_bytes(_bomb(30_000, 25_000))
    Path("texts.png").write_bytes(_with_text(70 << 20))
    plain = Image.new("RGB", (64, 64))
    plain.save("plain.png")
    stranger = Recipe(prompt="a ring", seed=1, sampling=Sampling(height=64, width=64), weights="0" * 16)
    write_png(plain, Path("other.png"), stranger.chunks())
    assert main(["--model", str(untrained_run), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert not Path("out.png").exists()


def test_weights_that_are_not_for_this_user_are_one_line(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(untrained_run / "model", tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    weights.chmod(0o000)
    if os.geteuid() == 0:  # whom no mode keeps out: the system's answer to anybody else stands in
        path_open = Path.open

        def refused(path: Path, *args: Any, **options: Any) -> Any:
            if path == weights:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return path_open(path, *args, **options)

        monkeypatch.setattr(Path, "open", refused)
    assert main(["--model", str(tmp_path / "model"), "a ring"]) == 2
    said = f"error: cannot open {weights}: Permission denied; its owner can allow it, with chmod\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "arguments",
    [
        ["a ring", "--steps", "0"],
        ["serve", "--prot", "80"],
        ["a ring", "--no-such-flag"],
        ["a ring", "--guidance", "nan"],
        ["a ring", "--guidance", "-inf"],
        ["a ring", "--shift", "0"],
        ["a ring", "--shift", "inf"],
        ["a ring", "--distilled-guidance", "1e400"],
        ["a ring", "--strength", "1.01"],
        ["a ring", "--strength", "nan"],
        ["a ring", "--width", "-64"],
        ["a ring", "--height", "1e3"],
        ["a ring", "--width", "1000000000"],
        ["a ring", "--seed", "-1"],
        ["a ring", "--seed", "9" * 40],
        ["a ring", "--steps", "1000001"],
        ["a ring", "-n", "0"],
        ["a ring", "--tile", "0"],
        ["a ring", "--lora", "style.safetensors:nan"],
        ["a ring", "--lora", "style.safetensors:1e9"],
        ["serve", "--port", "65536"],
        ["serve", "--queue", "0"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_arguments_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["--model", "m", *arguments] if arguments[0] != "serve" else arguments)
    except SystemExit as stop:  # the parser's own way to end
        code = stop.code
    assert code == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), said[:7]) == (1, "error: "), said
    assert len(said) < 600


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['l2p-generate', '--help']\n"
        "from l2p_generate.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "[]"


RECIPE = {"prompt": "a ring", "seed": 1, "height": 64, "width": 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 10**50}, "seed is a huge number"),
        ({"seed": "1"}, "seed is '1'; it must be a whole number"),
        ({"prompt": ["a"]}, "prompt is ['a']; it must be a text"),
        ({"prompt": "\ud801"}, "the prompt is no valid text"),
        ({"height": -64}, "height is -64"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"strength": 7}, "strength 7.0 is not between 0 and 1"),
        ({"batch": [["a", 1, 2]]}, "batch[0] is ['a', 1, 2]; it must be a list of 2 items"),
        ({"batch": [["a", 1], ["b", 2]], "place": 2}, "its place is not in its batch"),
        ({"adapters": [{"file": "x"}]}, "adapters[0].sha256 is missing"),
        ({"versions": 3}, "versions is 3"),
    ],
)
def test_a_recipe_of_wrong_values_is_refused(changes: dict[str, Any], message: str) -> None:
    from l2p_serve.errors import ServeError
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("l2p", json.dumps({**RECIPE, **changes}))
    Image.new("RGB", (64, 64)).save("recipe.png", pnginfo=chunks)
    with pytest.raises(ServeError) as raised:
        read_recipe(Path("recipe.png"))
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", "null"])
def test_a_recipe_that_is_no_object_is_refused(text: str) -> None:
    from l2p_serve.errors import ServeError
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("l2p", text)
    Image.new("RGB", (64, 64)).save("recipe.png", pnginfo=chunks)
    with pytest.raises(ServeError, match=r"the recipe in recipe.png is damaged .*; give another file"):
        read_recipe(Path("recipe.png"))


def test_a_picture_of_an_earlier_version_is_recognised_by_its_weights(untrained_run: Path) -> None:
    from l2p_serve.fingerprint import is_made_by, weights_hash

    model = untrained_run / "model"
    files = sorted((model / "transformer").glob("*.safetensors"))
    state = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        state.update(f"{len(content)}\0".encode() + content[: 1 << 20] + content[-(1 << 20) :])
    assert is_made_by(state.hexdigest()[:16], model)
    assert is_made_by(weights_hash(model), model)
    assert not is_made_by("0" * 16, model)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_byte_in_the_middle_of_the_weights_is_other_weights(
    untrained_run: Path, tmp_path: Path, part: str
) -> None:
    from l2p_serve.fingerprint import weights_hash

    model = Path(shutil.copytree(untrained_run / "model", tmp_path / "model"))
    before = weights_hash(model)
    assert before == weights_hash(untrained_run / "model")
    file = next((model / part).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert weights_hash(model) != before


@pytest.mark.parametrize("text", ["a ring " * 20_000, "x" * 140_000, "two\nlines\tand more", "", " . " * 400])
def test_a_caption_fits_whatever_the_prompt_at_once(text: str) -> None:
    from l2p_serve.sheet import fitting
    from PIL import ImageFont

    font, started = ImageFont.load_default(13), time.process_time()
    caption = fitting(text, 192, font)
    assert time.process_time() - started < 1
    assert font.getlength(caption) <= 192
    assert "\n" not in caption
    assert caption.rstrip(".").rstrip() in " ".join(text.split())


def test_pictures_are_written_as_they_come(untrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2p_serve import painting

    real, batches = painting.paint_together, []

    def interrupted(*arguments: Any) -> Any:
        if batches:
            raise KeyboardInterrupt
        batches.append(1)
        return real(*arguments)

    monkeypatch.setattr(painting, "paint_together", interrupted)
    arguments = ["--model", str(untrained_run), "a ring", "-n", "4", "--batch-size", "2", "--steps", "1"]
    assert main([*arguments, "-o", "part.png"]) == 130
    assert sorted(path.name for path in Path().iterdir()) == ["part-0000.png", "part-0001.png"]


@pytest.mark.parametrize(("broken", "code"), [("full", 2), ("closed", 0)])
def test_a_full_disk_and_a_closed_pipe_are_told_apart(
    untrained_run: Path,
    broken: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    if broken == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--model", str(untrained_run), "a ring", "--steps", "1"]) == code
    said = capsys.readouterr().err
    assert ("error: cannot write the result to standard output: No space" in said) == (broken == "full")
    assert Image.open("out.png").size == (64, 64)


def test_ctrl_c_in_the_first_moments_is_one_line() -> None:
    code = "import sys, signal, os\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from l2p_generate.cli import main\nimport l2p_generate.cli as cli\n"
    code += "cli._run = lambda given: os.kill(os.getpid(), signal.SIGINT)\nsys.exit(main(['a ring']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("interrupted")


def test_a_damaged_model_is_one_line(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(untrained_run / "model", tmp_path / "model"))
    (model / "sampling.json").write_text('{"width": "wide"}')
    assert main(["--model", str(model), "a ring"]) == 2
    assert "sampling.json: width is 'wide'; it must be a whole number" in capsys.readouterr().err
    (model / "sampling.json").unlink()
    (model / "scheduler" / "scheduler_config.json").write_text("[]")
    assert main(["--model", str(model), "a ring"]) == 2
    assert "scheduler_config.json is not a JSON object" in capsys.readouterr().err


def test_a_mask_keeps_what_is_black_to_the_bit_and_its_recipe_paints_it_again(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(untrained_run), "--steps", "2"]
    picture = Image.effect_noise((75, 50), 70).convert("RGB")
    picture.save("picture.png")
    mask = Image.new("L", (75, 50), 0)
    mask.paste(255, (20, 10, 45, 40))
    mask.save("mask.png")
    files = ["--image", "picture.png", "--mask", "mask.png"]
    assert main([*model, "a ring", *files, "-o", "a.png"]) == 0
    with Image.open("a.png") as made:
        assert made.size == (75, 50)  # whole patches or not
        kept = Image.composite(picture, made.convert("RGB"), mask.point(lambda value: 255 - value))
        assert kept.tobytes() == made.convert("RGB").tobytes()
        assert made.convert("RGB").tobytes() != picture.tobytes()
    Path("mask.png").rename("moved.png")
    again = ["--model", str(untrained_run), "--from-image", "a.png"]
    assert main(again) == 2
    assert "--mask mask.png does not exist" in capsys.readouterr().err
    assert main([*again, "--mask", "moved.png", "-o", "b.png"]) == 0
    assert "identical to a.png" in capsys.readouterr().err
    Image.new("L", (75, 50), 255).save("mask.png")
    assert main(again) == 2
    assert "mask.png is not the picture that the recipe started from" in capsys.readouterr().err


def _write_lora(model: Path, file: Path, seed: int) -> None:
    """A LoRA that changes the picture, as diffusers saves one."""
    import torch
    from l2p_arch import L2PTransformer
    from peft import LoraConfig

    transformer = L2PTransformer.from_pretrained(model / "transformer")
    blocks = transformer.block_names()
    targets = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(tuple(blocks))
    ]
    targets.append("detailer_head.out_conv")  # an untrained head does not look at the blocks yet
    transformer.add_adapter(LoraConfig(r=2, target_modules=targets), "made")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    transformer.save_lora_adapter(file.parent, adapter_name="made", weight_name=file.name)


def test_adapters_have_weights_and_are_known_by_content(
    untrained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("style.safetensors", 1), ("other.safetensors", 2)):
        _write_lora(untrained_run / "model", Path(name).absolute(), seed)
    model = ["--model", str(untrained_run), "--dtype", "float32", "a ring", "--steps", "2"]
    pictures = {}
    for name, flags in {
        "plain": [],
        "off": ["--lora", "style.safetensors:0"],
        "half": ["--lora", "style.safetensors:0.5"],
        "whole": ["--lora", "style.safetensors"],
        "both": ["--lora", "style.safetensors:0.5", "--lora", "other.safetensors:-0.5"],
    }.items():
        assert main([*model, *flags, "-o", f"{name}.png"]) == 0
        pictures[name] = _pixels(f"{name}.png")
    assert pictures["plain"] == pictures["off"]
    assert len(set(pictures.values())) == 4
    recipe = read_recipe(Path("both.png"))
    assert [(one.name, one.weight) for one in recipe.adapters] == [("style", 0.5), ("other", -0.5)]
    assert "<lora:style:0.5> <lora:other:-0.5>" in recipe.parameters()
    again = ["--model", str(untrained_run), "--from-image", "half.png"]
    assert main([*again, "-o", "again.png"]) == 0
    assert "identical to half.png" in capsys.readouterr().err
    Path("style.safetensors").rename("moved.safetensors")
    assert main(again) == 2
    assert "the adapter style.safetensors is not the one of the recipe" in capsys.readouterr().err
    assert main([*again, "--lora", "moved.safetensors:0.5", "-o", "c.png"]) == 0
    assert "identical to half.png" in capsys.readouterr().err
    Path("bad.safetensors").write_bytes(b"no tensors")
    assert main([*model, "--lora", "bad.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ") and "bad.safetensors" in said


SHIPPED = Path(l2p_mini.paths.__file__).parent / "pixel_model"


def test_without_a_model_and_a_miniature_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(l2p_mini.paths, "__file__", str(tmp_path / "paths.py"))
    assert main([PROMPT]) == 2
    assert "error: no --model was given, and l2p-mini ships no trained one here; give --model PATH" in (
        capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "l2p_mini", None)
    assert main([PROMPT]) == 2
    assert "is not installed; give --model PATH, or install l2p-mini" in capsys.readouterr().err


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the trained miniature is not there yet")
def test_without_a_model_the_miniature_paints_what_it_is_asked_for() -> None:
    assert main([PROMPT, "-o", "circles.png"]) == 0
    colours = Image.open("circles.png").convert("RGB").getcolors(1 << 16) or []
    reddish = sum(count for count, (red, green, blue) in colours if red > 1.5 * max(green, blue))
    grayish = sum(count for count, pixel in colours if max(pixel) - min(pixel) < 40)
    total = sum(count for count, _ in colours)
    assert reddish > total / 50
    assert grayish > total / 3
