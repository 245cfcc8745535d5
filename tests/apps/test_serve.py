"""The web page, in a real headless browser on a real server; and its limits, asked for without the page."""

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from l2p_generate.cli import main
from l2p_serve.recipe import read_recipe
from PIL import Image

CHROMIUM = shutil.which("chromium")
PATIENCE = 120_000  # ms; a quiet machine needs two seconds


@pytest.fixture(scope="module")
def address(untrained_run: Path) -> Iterator[str]:
    """`l2p-generate serve` as its users start it."""
    command = [
        sys.executable,
        "-m",
        "l2p_generate.cli",
        "serve",
        "--model",
        str(untrained_run),
        "--max-steps",
        "8",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), line or server.communicate(timeout=10)[1]
        try:
            yield line
        finally:
            server.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_visitor_paints_beside_the_source_and_takes_a_picture_back(address: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    hosts, errors = set(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on(
            "request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else "")
        )
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        prompt, seed = page.locator("#prompt textarea"), page.locator("#seed input")
        for number, (text, value) in enumerate([("a blue ring", "7"), ("two red circles", "8")], start=1):
            prompt.fill(text)
            seed.fill(value)
            page.click("#paint")
            page.wait_for_function(
                "n => document.querySelectorAll('#history .thumbnail-item').length === n", arg=number
            )
        assert page.locator("#source img").count() == 1
        file = tmp_path / "painted.png"
        url = page.locator("#painted img").first.get_attribute("src")
        file.write_bytes(page.request.get(str(url)).body())
        page.locator("#history .thumbnail-item").nth(1).click()
        page.wait_for_function("() => document.querySelector('#prompt textarea').value === 'a blue ring'")
        assert seed.input_value() == "7"
        browser.close()
    recipe = read_recipe(file)
    assert (recipe.prompt, recipe.seed) == ("two red circles", 8)
    assert Image.open(file).size == (64, 64)
    assert hosts - {""} == {address.removeprefix("http://")}, "the page asks other hosts"
    assert not errors


def test_the_page_paints_what_the_command_paints(
    address: str, untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painted = _paint(address, prompt="a blue ring", seed=7)[0][0]["image"]
    file = Path(painted["path"] if isinstance(painted, dict) else painted)
    output = str(tmp_path / "again.png")
    assert main(["--model", str(untrained_run), "--from-image", str(file), "-o", output]) == 0
    assert "identical" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "x" * 4001}, "longer than 4000"),
        ({"steps": 9}, "Value 9 is greater than maximum value 8"),
        ({"images": 500}, "greater than maximum value 4"),
        ({"width": 70}, "not a multiple of patch size 16"),
        ({"height": 1 << 20}, "greater than maximum value 2048"),
        ({"seed": -1}, "Value -1 is less than"),
    ],
)
def test_limits_hold_for_scripts_as_well(address: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        _paint(address, **wrong)


def _paint(address: str, **changes: Any) -> Any:
    """One request through the page's API."""
    from gradio_client import Client

    form = {
        "prompt": "a ring", "seed": 1, "new_seed": False, "images": 1, "with_source": False,
        "width": 64, "height": 64, "steps": 2, "guidance": 1.5, "shift": 3, "negative_prompt": "",
        "image": None, "strength": 0.6, "mask": None,
    }  # fmt: skip
    client = Client(address, verbose=False, analytics_enabled=False)
    return client.predict(*{**form, **changes}.values(), api_name="/paint")


def test_an_open_address_needs_users(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = ["serve", "--model", str(untrained_run), "--host", "0.0.0.0"]
    assert main(serve) == 2
    assert "add --auth-file" in capsys.readouterr().err
    users = tmp_path / "users.txt"
    for content in ("", "name", "name:", ":password"):
        users.write_text(content)
        assert main([*serve, "--auth-file", str(users)]) == 2
        assert "must hold lines of user:password" in capsys.readouterr().err


async def _at_once(*_: Any) -> None:
    """A wrong password costs no time here; that it does is another test's claim."""


def test_a_stranger_sees_the_login_only(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient
    from l2p_arch.sampling.painter import find_model, sampling_defaults
    from l2p_serve.door import guard
    from l2p_serve.errors import ServeError
    from l2p_serve.limits import Limits
    from l2p_serve.page.form import build_page, make_app
    from l2p_serve.page.studio import Request, Studio
    from l2p_serve.painting import load_painter

    model = find_model(untrained_run)
    studio = Studio(
        painter=load_painter(model, device="cpu"),
        source=None,
        source_name="",
        defaults=sampling_defaults(model.directory),
        limits=Limits(),
        folder=tmp_path,
    )
    with pytest.raises(ServeError, match="images 5 is not between 1 and 4"):
        studio.paint(Request(prompt="a ring", sampling=studio.defaults, images=5))
    secret = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(secret)
    app = make_app(build_page(studio), studio, auth=[("ann", "right")], queue=2)
    monkeypatch.setattr(guard.Attempts, "punish", _at_once)
    with TestClient(app) as client:
        for path in ("/openapi.json", "/docs", "/redoc", "/gradio_api/openapi.json", "/gradio_api/info"):
            assert client.get(path).status_code in (401, 404), path
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
        assert client.get("/config").status_code == 401
        assert client.get(f"/gradio_api/file={secret}").status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "ann", "password": "right"}).status_code == 200
        assert client.get("/config").status_code == 200
        assert client.get(f"/gradio_api/file={secret}").status_code == 200
        assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
        assert client.get("/").cookies.get(guard.SESSION)
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 200
        for _ in range(12):
            last = client.post("/login", data={"username": "ann", "password": "wrong"})
        assert last.status_code == 429
        assert "too many wrong passwords; try again in" in last.json()["detail"]
        assert client.post("/login", data={"username": "ann", "password": "right"}).status_code == 429


def test_a_taken_port_is_said(untrained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    from l2p_serve.door.listening import listen
    from l2p_serve.errors import ServeError

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1, port {port}"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as free:
        assert free.getsockname()[1] >= 7860


def test_the_page_answers_on_the_loopback_address_only(address: str) -> None:
    import socket

    assert urllib.request.urlopen(address, timeout=60).status == 200
    port = int(address.rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
    for host in others - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, port), timeout=5)
