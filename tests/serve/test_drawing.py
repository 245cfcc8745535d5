"""What is drawn over a picture, in a real headless browser, is the mask that the studio is asked to use."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
PATIENCE = 120_000  # ms; a quiet machine needs two seconds


@pytest.fixture
def page_of(tmp_path: Path) -> Iterator[Any]:
    """(address, requests): the page over a studio that notes what it is asked and paints nothing."""
    import uvicorn
    from l2p_serve import Limits, Sampling
    from l2p_serve.door.listening import address_of, listen
    from l2p_serve.page.form import build_page, make_app
    from l2p_serve.page.studio import Answer, Request, Studio

    asked: list[Request] = []
    picture = tmp_path / "answer.png"
    Image.new("RGB", (64, 64)).save(picture)

    class Noting(Studio):
        def paint(self, request: Request, on_step: Any = None) -> Answer:
            asked.append(request)
            return Answer(painted=[(picture, 1)], source=[])

    pipeline = SimpleNamespace(transformer=SimpleNamespace(patch_size=16))
    painter: Any = SimpleNamespace(name="noting", adapters=(), pipeline=pipeline)
    studio = Noting(
        painter=painter,
        source=None,
        source_name="",
        defaults=Sampling(height=64, width=64),
        limits=Limits(),
        folder=tmp_path,
    )
    with listen("127.0.0.1", 0) as listener:
        app = make_app(build_page(studio), studio, auth=[], queue=4)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield address_of(listener), asked
        server.should_exit = True
        thread.join(60)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")  # its use of pandas
def test_a_stroke_is_the_mask_and_without_one_there_is_none(page_of: Any, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    address, asked = page_of
    Image.new("RGB", (96, 64), "gray").save(tmp_path / "picture.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1360, "height": 1900})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#prompt textarea").fill("a ring")
        while not page.locator("input[type=file]").count():  # a click before the page is alive does nothing
            page.get_by_text("Settings").first.click()
            page.wait_for_timeout(3000)
        page.locator("input[type=file]").first.set_input_files(str(tmp_path / "picture.png"))
        page.locator("#mask").get_by_text("%").first.wait_for()  # the zoom, when the picture lies there
        page.wait_for_timeout(1000)
        _paint(page, asked, 1)
        box = page.locator("#mask canvas").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 60, y)
        page.mouse.down()
        for step in range(-60, 1, 10):
            page.mouse.move(x + step, y)
            page.wait_for_timeout(100)
        page.mouse.up()
        page.wait_for_timeout(2000)
        _paint(page, asked, 2)
        browser.close()
    without, drawn = asked
    assert without.image is not None and without.mask is None
    assert drawn.mask is not None and drawn.mask.size == (96, 64)
    left, top, right, bottom = drawn.mask.getbbox()
    assert top < 32 < bottom and bottom - top < 24, "a stroke through the middle, as thin as the brush"
    assert left < 40 and 44 < right < 60, "from the left to the middle"


def _paint(page: Any, asked: list[Any], count: int) -> None:
    page.click("#paint")
    end = time.monotonic() + PATIENCE / 1000
    while len(asked) < count and time.monotonic() < end:
        page.wait_for_timeout(200)
    assert len(asked) == count
