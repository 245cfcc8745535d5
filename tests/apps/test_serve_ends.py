"""What is left of a server's session, and who may ask a server, tried on running ones."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(untrained_run: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    """Starts `l2p-generate serve` with a temporary folder of its own; returns the process and its address."""

    def begin(*flags: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "l2p_generate.cli", "serve", "--model", str(untrained_run)]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        environment.pop("GRADIO_TEMP_DIR", None)
        server = subprocess.Popen(
            [*command, "--no-source", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # pytest's own may be ignored
        )
        request.addfinalizer(server.kill)
        assert server.stdout is not None
        line = server.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), server.communicate(timeout=60)[1]
        return server, line

    return begin


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of an answer."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, names), timeout=120) as answer:
            return answer.status, answer.read().decode(errors="replace"), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def upload(address: str, **headers: str) -> tuple[int, str]:
    stream = BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, format="PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + stream.getvalue() + b"\r\n--x--\r\n"
    kind = "multipart/form-data; boundary=x"
    return ask(f"{address}/gradio_api/upload", body, Content_Type=kind, **headers)[:2]


def test_nothing_of_a_session_stays_on_the_disk(start: Start, tmp_path: Path) -> None:
    from gradio_client import Client

    form = ["a ring", 1, False, 1, False, 64, 64, 2, 1.5, 3, "", None, 0.6, None]
    server, address = start()
    _, _, headers = ask(address)
    cookie = headers["set-cookie"].partition(";")[0]
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    status, text = upload(address, Cookie=cookie)
    assert status == 200, text
    client = Client(address, verbose=False, analytics_enabled=False, download_files=False)
    client.predict(*form, api_name="/paint")
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".png" for path in left) >= 3, left  # picture, Gradio's copy, upload
    assert all(path.relative_to(tmp_path).parts[0].startswith("l2p-serve-") for path in left), left
    assert (next(tmp_path.iterdir()).stat().st_mode & 0o077) == 0
    _foreign_requests_are_refused(address)
    server.kill()
    server.wait(60)
    assert any(tmp_path.iterdir())  # nobody can tidy up after kill -9
    server, address = start()
    assert len(list(tmp_path.iterdir())) == 1  # but whoever comes next does
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 143
    assert not list(tmp_path.iterdir())


def _foreign_requests_are_refused(address: str) -> None:
    port = address.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "169.254.169.254", ""):
        status, text, _ = ask(address, Host=host)
        assert status in (400, 403), host
        assert status == 400 or "does not answer to the name" in text
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"LOCALHOST:{port}"):
        assert ask(address, Host=host)[0] == 200
    join = f"{address}/gradio_api/queue/join"
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}", "http://localhost"):
        status, text, _ = ask(join, b"{}", Origin=origin, Content_Type="application/json")
        assert (status, "may not ask this server" in text) == (403, True), origin
    status, text, _ = ask(f"{address}/config", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")
    assert (status, "another site's page" in text) == (403, True)
    assert ask(join, b"{}", Origin=address, Content_Type="application/json")[0] != 403
    for cookie in ("", "l2p-session=guessed", "l2p-session=", "a=b; ;;=;"):
        status, text = upload(address, Cookie=cookie)
        assert (status, "uploads need the page's session" in text) == (403, True), cookie
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert '"openapi"' not in ask(address + path)[1][:100]


def test_ctrl_c_leaves_nothing_and_is_one_line(start: Start, tmp_path: Path) -> None:
    server, address = start("--api")
    body = json.dumps({"prompt": "a ring", "steps": 1}).encode()
    status, text, _ = ask(f"{address}/images/generations", body)
    assert status == 200, text
    assert ask(json.loads(text)["data"][0]["url"])[0] == 200
    server.send_signal(signal.SIGINT)
    _, err = server.communicate(timeout=60)
    assert server.returncode == 130
    assert [line for line in err.splitlines() if "loading" not in line and "Ctrl-C ends" not in line] == [
        "interrupted; start it again"
    ]
    assert not list(tmp_path.iterdir())


def test_only_what_is_dead_and_ours_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile
    import time

    from l2p_serve.door import scratch

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("l2p-serve-dead", "l2p-serve-begun", "l2p-serve-old", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "l2p-serve-dead" / ".lock").touch()
    os.utime(tmp_path / "l2p-serve-old", (time.time() - 3600,) * 2)
    (tmp_path / "l2p-serve-link").symlink_to(tmp_path / "other")
    with scratch.scratch_folder() as mine:
        assert mine.stat().st_mode & 0o777 == 0o700
        with scratch.scratch_folder() as second:
            assert mine.is_dir()  # alive, though another starts
            (second / "gradio").mkdir()
            (second / "gradio" / "picture.png").touch()
        assert not second.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"l2p-serve-begun", "l2p-serve-link", "other"}


def test_wrong_passwords_wait_longer_each_time_and_then_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from l2p_serve.door import guard

    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    attempts = guard.Attempts()
    for _ in range(10):
        assert attempts.wait("2001:db8::1") == 0
        asyncio.run(attempts.punish("2001:db8::1"))
    assert waits[:4] == [0.5, 1, 2, 4]
    assert max(waits) == 4
    assert 50 < attempts.wait("2001:db8::2") <= 60  # the same user has many addresses
    assert attempts.wait("192.0.2.1") == 0
    attempts.forgive("192.0.2.1")
    assert not attempts._times["192.0.2.1"]


def test_a_proxy_s_name_is_allowed_by_a_flag() -> None:
    from l2p_serve.door.guard import answered_names

    assert answered_names("127.0.0.1", []) == {"localhost", "127.0.0.1", "::1"}
    assert "pictures.example" in (answered_names("127.0.0.1", ["Pictures.example"]) or ())
    assert answered_names("0.0.0.0", []) is None  # there is a password
    assert answered_names("0.0.0.0", ["pictures.example"]) == {"pictures.example"}
