"""OpenAI's image endpoints, asked by OpenAI's own client, under load and over what kills a server."""

import base64
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image, ImageDraw

TOKEN = "a-token-of-a-test"


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].partition("/")[0])

    def client(self, key: str = TOKEN, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=retries, timeout=300)

    def get(self, path: str) -> str:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").splitlines()
        return float(next(line for line in lines if line.startswith(f"l2p_{name} ")).split()[1])


def serve(run: Path, folder: Path, *flags: str) -> Server:
    (folder / "tokens.txt").write_text(f"# who may\n{TOKEN}\n")
    command = [sys.executable, "-m", "l2p_generate.cli", "serve", "--api", "--model", str(run)]
    command += ["--token-file", str(folder / "tokens.txt"), "--queue", "64", "--max-batch", "8", *flags]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line.endswith("/v1"), process.communicate(timeout=60)[1]
    return Server(process, line)


@pytest.fixture(scope="module")
def server(untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = serve(untrained_run, tmp_path_factory.mktemp("api"), "--port", "0")
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.process.wait(60)


def opened(entry: Any) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(entry.b64_json)))


def paint(server: Server, prompt: str = "a ring", **options: Any) -> Any:
    given = {"response_format": "b64_json", "extra_body": {"steps": 2, "seed": 5}, **options}
    return server.client().images.generate(prompt=prompt, model="run", **given)


def test_the_client_gets_the_pictures_that_it_asks_for(server: Server, tmp_path: Path) -> None:
    from l2p_serve.recipe import read_recipe

    answer = paint(server, n=2, size="64x32")
    images = [opened(entry) for entry in answer.data]
    assert [image.size for image in images] == [(64, 32), (64, 32)]
    assert images[0].tobytes() != images[1].tobytes()
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer.data[1].b64_json))
    recipe = read_recipe(tmp_path / "a.png")
    assert (recipe.prompt, recipe.seed, recipe.sampling.num_inference_steps) == ("a ring", 6, 2)
    again = paint(server, size="64x32")
    difference = zip(images[0].tobytes(), opened(again.data[0]).tobytes(), strict=True)
    assert max(abs(one - two) for one, two in difference) <= 2  # the batch decides the last bits
    by_url = server.client().images.generate(prompt="a ring", extra_body={"steps": 1}).data[0].url
    with urllib.request.urlopen(by_url, timeout=60) as file:
        assert Image.open(BytesIO(file.read())).size == (64, 64)
    jpeg = paint(server, extra_body={"steps": 1, "output_format": "jpeg"})
    assert opened(jpeg.data[0]).format == "JPEG"


def test_the_models_are_listed(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").owned_by == "l2p"
    with pytest.raises(openai.NotFoundError, match="the model 'gpt' does not exist"):
        client.models.retrieve("gpt")
    assert json.loads(server.get("/health"))["status"] == "ok"


def test_an_edit_keeps_what_the_mask_keeps_to_the_bit(server: Server) -> None:
    picture = Image.effect_noise((70, 52), 60).convert("RGB")
    mask = Image.new("RGBA", (70, 52), "black")
    ImageDraw.Draw(mask).rectangle((10, 10, 29, 29), fill=(0, 0, 0, 0))
    holed = picture.convert("RGBA")
    holed.putalpha(mask.getchannel("A"))
    for files in ({"image": picture, "mask": mask}, {"image": holed}):
        sent = {name: (f"{name}.png", png(image), "image/png") for name, image in files.items()}
        answer = server.client().images.edit(
            **sent, prompt="a ring", response_format="b64_json", extra_body={"steps": "2"}
        )
        made = opened(answer.data[0])
        assert made.size == picture.size
        changed = [
            (x, y) for x in range(70) for y in range(52) if made.getpixel((x, y)) != picture.getpixel((x, y))
        ]
        assert changed
        assert all(10 <= x <= 29 and 10 <= y <= 29 for x, y in changed)


def test_an_edit_without_a_mask_starts_from_the_picture(server: Server) -> None:
    green = Image.new("RGB", (64, 64), (10, 200, 30))
    answer = server.client().images.edit(
        image=("a.png", png(green), "image/png"),
        prompt="a ring",
        response_format="b64_json",
        extra_body={"strength": "0"},
    )
    assert opened(answer.data[0]).getcolors() == [(64 * 64, (10, 200, 30))]


def png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"prompt": "  "}, openai.BadRequestError, "the prompt is empty"),
        ({"prompt": "x" * 4001}, openai.BadRequestError, "longer than 4000 characters"),
        ({"size": "70x64"}, openai.BadRequestError, "not a multiple of patch size 16"),
        ({"size": "4096x4096"}, openai.BadRequestError, "is not between 1 and 2048"),
        ({"size": "big"}, openai.BadRequestError, "wanted WIDTHxHEIGHT"),
        ({"size": "-64x64"}, openai.BadRequestError, "wanted WIDTHxHEIGHT"),
        ({"size": "64x0"}, openai.BadRequestError, "height is 0"),
        ({"n": 9}, openai.BadRequestError, "images 9 is not between 1 and 4"),
        ({"n": 0}, openai.BadRequestError, "n is 0; it must be a whole number"),
        ({"extra_body": {"seed": -1}}, openai.BadRequestError, "seed is -1"),
        ({"extra_body": {"seed": 10**30}}, openai.BadRequestError, "it must be a whole number from 0"),
        ({"extra_body": {"steps": 1.5}}, openai.BadRequestError, "steps is 1.5"),
        ({"extra_body": {"steps": 101}}, openai.BadRequestError, "steps 101 is not between 1 and 100"),
        ({"extra_body": {"guidance_scale": "inf"}}, openai.BadRequestError, "it must be a number"),
        ({"extra_body": {"guidance_scale": 1e300}}, openai.BadRequestError, "guidance_scale is 1e\\+300"),
        ({"extra_body": {"strength": 0.5}}, openai.BadRequestError, "strength is of /v1/images/edits"),
        ({"extra_body": {"sampler": "euler"}}, openai.BadRequestError, "unknown parameter 'sampler'"),
        ({"extra_body": {"negative_prompt": 5}}, openai.BadRequestError, "negative_prompt must be a text"),
        ({"output_format": "gif"}, openai.BadRequestError, "output_format must be one of"),
        ({"response_format": "file"}, openai.BadRequestError, "must be url or b64_json"),
    ],
)
def test_a_wrong_request_is_openai_s_error(server: Server, options: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        paint(server, **options)
    assert raised.value.body["type"] == "invalid_request_error"


def test_what_is_no_request_is_an_error_in_the_same_form(server: Server) -> None:
    long = b"x" * (51 << 20)
    for path, body, kind, status in (
        ("/images/generations", b"{", "application/json", 400),
        ("/images/generations", b"[1]", "application/json", 400),
        ("/images/generations", b"\xff\xfe", "application/json", 400),
        ("/images/generations", b'{"prompt": "\\ud800"}', "application/json", 400),
        ("/images/generations", b"[" * 100_000, "application/json", 400),
        ("/images/generations", long, "application/json", 413),
        ("/images/edits", b"{}", "application/json", 400),
        ("/images/edits", b"--x", "multipart/form-data", 400),
        ("/images/edits", b"--x\r\nrubbish", "multipart/form-data; boundary=x", 400),
        ("/chat/completions", b"{}", "application/json", 404),
    ):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        with pytest.raises(urllib.request.HTTPError) as raised:  # type: ignore[attr-defined]
            urllib.request.urlopen(urllib.request.Request(server.url + path, body, headers), timeout=60)
        assert raised.value.code == status, (path, body[:20])
        assert set(json.load(raised.value)["error"]) == {"message", "type", "param", "code"}


def test_a_picture_that_is_none_is_named(server: Server) -> None:
    for image, mask, words in (
        (b"no picture", None, "image is not a readable image"),
        (b"", None, "image is not a readable image: it is empty"),
        (png(Image.new("RGB", (64, 64))), b"\x89PNG\r\n\x1a\n", "mask is not a readable image"),
        (png(Image.new("RGB", (64, 64))), png(Image.new("RGB", (64, 64))), "mask has no transparent place"),
    ):
        extra = {"mask": ("m.png", mask, "image/png")} if mask else {}
        with pytest.raises(openai.BadRequestError, match=words):
            server.client().images.edit(image=("a.png", image, "image/png"), prompt="a ring", **extra)


def test_a_wrong_token_is_refused_and_late(server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(openai.AuthenticationError, match="the token is wrong"):
        server.client("another-token-of-a-test").images.generate(prompt="a ring")
    assert time.monotonic() - started > 0.5
    with pytest.raises(urllib.request.HTTPError, match="401"):  # type: ignore[attr-defined]
        urllib.request.urlopen(server.url.removesuffix("/v1") + "/metrics", timeout=60)


def test_fifty_at_once_are_painted_in_batches(server: Server) -> None:
    before = server.metric("images_total"), server.metric("batches_total")
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda number: paint(server, f"{number} rings", size="32x32"), range(50)))
    assert all(opened(answer.data[0]).size == (32, 32) for answer in answers)
    images = server.metric("images_total") - before[0]
    batches = server.metric("batches_total") - before[1]
    assert images == 50
    assert batches <= 25, "requests of one size are painted together"


def test_more_than_may_wait_are_turned_away_and_the_rest_painted(untrained_run: Path, painter: Any) -> None:
    from l2p_serve.api.batching import BatchQueue, QueueFull

    queue = BatchQueue(painter, waiting=3, batch=2, gather=0)
    jobs, refused = [], 0
    for number in range(40):
        try:
            jobs.append(queue.submit([recipe(f"{number} rings", steps=8)]))
        except QueueFull as error:
            refused += 1
            assert "3 requests are waiting, which is all that may" in str(error)
    assert refused >= 30
    assert all(job.done.result(timeout=120)[0].size == (32, 32) for job in jobs)
    queue.stop()
    with pytest.raises(QueueFull, match="the server is ending"):
        queue.submit([recipe("a ring")])


@pytest.fixture(scope="module")
def painter(untrained_run: Path) -> Any:
    from l2p_arch.sampling.painter import find_model
    from l2p_serve.painting import load_painter

    return load_painter(find_model(untrained_run), device="cpu", dtype="float32")


def recipe(prompt: str, steps: int = 1, seed: int = 1) -> Any:
    from l2p_arch.sampling.settings import Sampling
    from l2p_serve.recipe import Recipe

    sampling = Sampling(height=32, width=32, num_inference_steps=steps, guidance_scale=1.0)
    return Recipe(prompt=prompt, seed=seed, sampling=sampling)


def test_one_request_spoils_no_other_of_its_batch(painter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2p_serve.api.batching import BatchQueue
    from l2p_serve.painting import Painter

    real, sizes = Painter.paint, []

    def touchy(painter: Any, recipes: Any, on_step: Any) -> Any:
        sizes.append(len(recipes))
        if any("poison" in each.prompt for each in recipes):
            raise RuntimeError("out of order")
        return real(painter, recipes, on_step)

    monkeypatch.setattr(Painter, "paint", touchy)
    queue = BatchQueue(painter, waiting=9, batch=4, gather=0.5)
    jobs = [queue.submit([recipe(text)]) for text in ("a ring", "poison", "a cross")]
    assert jobs[0].done.result(timeout=60)[0].size == (32, 32)
    assert jobs[2].done.result(timeout=60)[0].size == (32, 32)
    with pytest.raises(RuntimeError, match="out of order"):
        jobs[1].done.result(timeout=60)
    assert sizes == [3, 1, 1, 1]
    queue.stop()


def test_an_image_of_a_batch_is_that_of_its_own_seed(painter: Any) -> None:
    from l2p_serve.api.batching import BatchQueue
    from l2p_serve.painting import paint_together

    queue = BatchQueue(painter, waiting=9, batch=4, gather=0.5)
    asked = [
        replace(recipe("a ring", seed=seed), negative_prompt=words) for seed, words in ((1, ""), (2, "x"))
    ]
    jobs = [queue.submit([each]) for each in asked]
    for job, each in zip(jobs, asked, strict=True):
        together = job.done.result(timeout=60)[0].tobytes()
        alone = paint_together(painter, [each], lambda *_: None)[0].tobytes()
        assert max(abs(one - two) for one, two in zip(together, alone, strict=True)) <= 1
    assert queue.counts.batches == 1
    queue.stop()


def test_who_hangs_up_is_not_painted_for(server: Server) -> None:
    body = json.dumps({"prompt": "a ring", "steps": 100, "n": 4, "size": "256x256"}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += f"Authorization: Bearer {TOKEN}"
    before = server.metric("abandoned_images_total")
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            length = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
            connection.sendall(f"{head}\r\n{length}\r\n\r\n".encode() + body)
            time.sleep(1)
    deadline = time.monotonic() + 120
    while server.metric("queue_requests") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert opened(paint(server).data[0]).size == (64, 64)
    assert server.metric("abandoned_images_total") > before


def test_a_killed_server_starts_again_on_its_port(server: Server, untrained_run: Path) -> None:
    folder = Path(server.process.args[server.process.args.index("--token-file") + 1]).parent  # type: ignore
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        long = [pool.submit(paint, server, extra_body={"steps": 100}) for _ in range(4)]
        time.sleep(1)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
        assert all(isinstance(each.exception(60), openai.APIConnectionError) for each in long)
    port = str(server.port)
    again = serve(untrained_run, folder, "--port", port)
    assert opened(paint(again).data[0]).size == (64, 64)
    again.process.terminate()
    assert again.process.wait(60) == 143
    assert not list(folder.glob("l2p-serve-*"))


@pytest.mark.parametrize("content", ["", "short", "a token with blanks in it", "tökens-are-ascii-only"])
def test_tokens_that_are_none_are_said(
    untrained_run: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from l2p_generate.cli import main

    (tmp_path / "tokens.txt").write_text(content)
    arguments = [
        "serve",
        "--api",
        "--model",
        str(untrained_run),
        "--token-file",
        str(tmp_path / "tokens.txt"),
    ]
    assert main(arguments) == 2
    assert "must hold a token a line, of at least 16 ASCII characters" in capsys.readouterr().err


def test_an_open_api_needs_tokens(untrained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from l2p_generate.cli import main

    assert main(["serve", "--api", "--model", str(untrained_run), "--host", "0.0.0.0"]) == 2
    assert "add --token-file with lines of a token each" in capsys.readouterr().err
    assert main(["serve", "--model", str(untrained_run), "--token-file", __file__]) == 2
