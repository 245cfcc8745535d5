"""A picture is opened as people see it, or it is one line that says why not."""

import os
import random
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from l2p_run.errors import UserError
from l2p_run.pictures import MAX_PIXELS, open_picture, read_picture
from PIL import Image, PngImagePlugin


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_every_kind_of_picture_is_what_a_viewer_shows(picture_zoo: list[Any]) -> None:
    wrong = {}
    for animal in picture_zoo:
        found = np.asarray(read_picture(animal.content, name=animal.name).image)
        if found.shape != animal.seen.shape:
            wrong[animal.name] = f"{found.shape}"
        elif (apart := np.abs(found.astype(int) - animal.seen.astype(int)).max()) > animal.tolerance:
            wrong[animal.name] = f"{apart} of 255"
    assert not wrong and len(picture_zoo) > 100


def test_only_bytes_that_show_the_picture_by_themselves_are_called_plain(picture_zoo: list[Any]) -> None:
    for animal in picture_zoo:
        assert read_picture(animal.content).plain == animal.plain, animal.name
        with Image.open(BytesIO(animal.content)) as image:
            if animal.plain:  # a decoder that knows nothing of all this agrees
                simple = np.asarray(image.convert("RGB")).astype(int)
                assert np.abs(simple - animal.seen.astype(int)).max() <= animal.tolerance, animal.name


def test_what_was_changed_is_said() -> None:
    exif = Image.Exif()
    exif[274] = 8
    picture = Image.new("RGBA", (6, 4), (10, 20, 30, 0))
    content = saved(picture, "PNG", exif=exif)
    assert read_picture(content).changes == ("transparency filled", "turned upright")
    frames = [Image.new("L", (5, 5), 40 * number) for number in range(7)]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(moving).changes == ("the first of 7 frames",)
    assert (
        "more than 8 bits scaled to 8"
        in read_picture(saved(Image.fromarray(np.full((4, 4), 30_000, np.uint16)), "PNG")).changes
    )


@pytest.mark.parametrize(
    ("name", "colour"), [("black", (0, 0, 0)), ("#10c0ff", (16, 192, 255)), ("hsl(0,100%,50%)", (255, 0, 0))]
)
def test_another_background_can_be_named(name: str, colour: tuple[int, int, int]) -> None:
    content = saved(Image.new("RGBA", (3, 3), (200, 0, 200, 0)), "WEBP", lossless=True)
    assert open_picture(content, background=name).getpixel((1, 1)) == colour
    with pytest.raises(UserError, match="is no colour"):
        open_picture(content, background=name + "y")


@pytest.mark.parametrize(
    ("module", "suffix", "extra"), [("pillow_heif", "heic", "heic"), ("pillow_jxl", "jxl", "jxl")]
)
def test_heic_and_jpeg_xl_are_read_by_their_library_and_named_without_it(
    module: str, suffix: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip(module)
    if module == "pillow_heif":
        library.register_heif_opener()
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.fromarray(np.add.outer(np.arange(64) % 9, 2 * np.arange(32) ** 2).astype(np.uint8))
    picture = picture.convert("RGB")
    options: dict[str, Any] = (
        {"quality": 95, "exif": exif.tobytes()} if suffix == "heic" else {"lossless": True}
    )
    path = tmp_path / f"a.{suffix}"
    picture.save(path, "HEIF" if suffix == "heic" else "JXL", **options)
    # An HEIC turns by its own boxes: a quarter to the right, once and not twice.
    wanted = np.rot90(np.asarray(picture), -1) if suffix == "heic" else np.asarray(picture)
    found = np.asarray(open_picture(path)).astype(int)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 12
    assert not read_picture(path).plain
    with pytest.raises(UserError, match="damaged or cut off"):
        open_picture(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"install l2p-run\[{extra}\], or save it as PNG or JPEG"):
        open_picture(path)


def test_an_avif_without_its_decoder_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("RGB", (8, 8)), "AVIF")
    monkeypatch.setattr("l2p_run.pictures.features.check", lambda name: name != "avif")
    with pytest.raises(UserError, match="an AVIF picture; install Pillow's own wheel"):
        open_picture(content)


def text_bomb() -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("a", "x" * 80_000_000, zip=True)
    return saved(Image.new("RGB", (4, 4)), "PNG", pnginfo=chunks)


def profile_bomb() -> bytes:
    whole = saved(Image.new("RGB", (4, 4)), "PNG")
    packed = b"icc\0\0" + zlib.compress(bytes(90_000_000), 9)
    chunk = (
        len(packed).to_bytes(4, "big") + b"iCCP" + packed + zlib.crc32(b"iCCP" + packed).to_bytes(4, "big")
    )
    return whole[:33] + chunk + whole[33:]


def bomb(side: int) -> bytes:
    """The head of a PNG of that size, and nothing of its pixels."""
    whole = saved(Image.new("1", (16, 16)), "PNG")
    head = b"IHDR" + side.to_bytes(4, "big") * 2 + whole[24:29]
    return whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]


def not_finite() -> bytes:
    values = np.ones((4, 4), np.float32)
    values[2, 1] = np.nan
    return saved(Image.fromarray(values), "TIFF")


def preview() -> bytes:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[254] = 1
    return saved(Image.new("RGB", (4, 4)), "TIFF", tiffinfo=tags)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "it is empty"),
        (lambda: b"hello", "it is of no kind that is read here"),
        (lambda: bytes(5000), "it is of no kind that is read here"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a drawing"),
        (lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "it is a drawing"),
        (lambda: b"\x76\x2f\x31\x01" + bytes(99), "open range"),
        (lambda: b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "it is a camera's raw file"),
        (lambda: bomb(12_000), "it has 12,000 x 12,000 px; at most 134,217,728 px are read"),
        (lambda: bomb(30_000), "it is far too large"),
        (text_bomb, "its texts unpack to more"),
        (profile_bomb, "its texts unpack to more"),
        (not_finite, "it holds NaN or infinity"),
        (preview, "it is a camera's raw file or begins with a preview"),
    ],
)
def test_what_is_no_picture_is_one_line_with_its_remedy(make: Any, message: str) -> None:
    content = make()
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_picture(content, name="album/a.png")
    assert str(caught.value).startswith("album/a.png is not a readable image: ") and message in str(
        caught.value
    )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.monotonic() - started < 5


def test_the_largest_picture_of_the_paper_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    content = saved(Image.new("1", (10_240, 10_240)), "PNG", compress_level=1)
    assert open_picture(content).size == (10_240, 10_240)
    assert MAX_PIXELS >= 10_240**2 and not recwarn.list


def test_a_picture_cut_anywhere_is_never_half_a_picture(picture_zoo: list[Any]) -> None:
    chance = random.Random(5)
    for animal in picture_zoo:
        if animal.name.startswith(("turned-", "key-")):
            continue
        for _ in range(4):
            content = animal.content[: chance.randrange(len(animal.content))]
            try:
                found = np.asarray(open_picture(content, name="a"))
            except UserError as error:
                assert "\n" not in str(error)
                continue
            # What is missing at the end shows nothing: a closing mark, further frames.
            assert found.shape == animal.seen.shape, animal.name
            assert np.abs(found.astype(int) - animal.seen).max() <= animal.tolerance, animal.name


def test_damaged_bytes_are_one_line_or_a_picture_and_never_a_traceback(picture_zoo: list[Any]) -> None:
    chance = random.Random(11)
    for animal in picture_zoo:
        for _ in range(6):
            content = bytearray(animal.content)
            for _ in range(chance.randrange(1, 9)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            try:
                assert open_picture(bytes(content)).mode == "RGB"
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 500


def test_what_stands_in_the_way_of_a_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder"):
        open_picture(tmp_path)
    with pytest.raises(UserError, match="no regular file"):
        open_picture(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        open_picture(tmp_path / "pipe")
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(UserError, match="symbolic links"):
        open_picture(tmp_path / "a.png")
