"""The endpoints over a painter that knows nothing of L2P: what another team puts behind them."""

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from l2p_serve import Limits, Recipe, Sampling, ServeError, api_application, read_recipe, serve_api
from PIL import Image

DEFAULTS = Sampling(height=48, width=80)


class Colours:
    """Paints its prompt, a colour's name, in strips that the seed decides; refuses tall pictures."""

    name = "colours"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.held = threading.Event()
        self.held.set()

    def check(self, recipe: Recipe) -> None:
        if recipe.sampling.height > recipe.sampling.width:
            raise ServeError("height is more than width; ask for a flat picture")

    def paint(self, recipes: Sequence[Recipe], on_step: Callable[..., None]) -> list[Any]:
        self.batches.append(len(recipes))
        for step in range(100):
            on_step(step)
            if self.held.wait(0.05):
                break
        return [self._strip(recipe) for recipe in recipes]

    def _strip(self, recipe: Recipe) -> Image.Image:
        image = Image.new("RGB", (recipe.sampling.width, recipe.sampling.height), recipe.prompt)
        image.putpixel((recipe.seed % image.width, 0), (1, 2, 3))
        return image

    def signed(self, recipe: Recipe) -> Recipe:
        return replace(recipe, model=self.name, device="a hand")


@pytest.fixture
def colours() -> Colours:
    return Colours()


@pytest.fixture
def client(colours: Colours, tmp_path: Path) -> Iterator[TestClient]:
    with (
        api_application(colours, defaults=DEFAULTS, folder=tmp_path, limits=Limits(images=3)) as app,
        TestClient(app, base_url="http://127.0.0.1") as client,
    ):
        yield client


def ask(client: TestClient, **values: Any) -> Any:
    return client.post("/v1/images/generations", json={"response_format": "b64_json", **values})


def test_its_pictures_come_back_with_what_made_them(client: TestClient, tmp_path: Path) -> None:
    answer = ask(client, prompt="teal", n=2, seed=7).json()
    for number, entry in enumerate(answer["data"]):
        content = base64.b64decode(entry["b64_json"])
        image = Image.open(BytesIO(content))
        assert image.size == (80, 48) and image.getpixel((40, 40)) == (0, 128, 128)
        assert image.getpixel((7 + number, 0)) == (1, 2, 3)
        (tmp_path / "a.png").write_bytes(content)
        recipe = read_recipe(tmp_path / "a.png")
        assert (recipe.prompt, recipe.seed, recipe.model) == ("teal", 7 + number, "colours")
        assert recipe.device == "a hand"
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["colours"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": "16x48"}, "height is more than width"),
        ({"n": 4}, "images 4 is not between 1 and 3"),
        ({"model": "another"}, "it is 'colours'"),
    ],
)
def test_it_refuses_before_anything_waits(
    client: TestClient, colours: Colours, values: dict[str, Any], words: str
) -> None:
    answer = ask(client, prompt="teal", **values)
    assert answer.status_code in (400, 404) and words in answer.json()["error"]["message"]
    assert not colours.batches


def test_a_bug_of_its_own_is_no_word_to_the_client(client: TestClient, colours: Colours) -> None:
    with TestClient(client.app, base_url="http://127.0.0.1", raise_server_exceptions=False) as calm:
        answer = ask(calm, prompt="no colour at all")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server failed; its log says more"
    assert ask(client, prompt="teal").status_code == 200


def test_what_nobody_waits_for_is_given_up_between_its_steps(colours: Colours) -> None:
    from l2p_serve import BatchQueue

    colours.held.clear()
    queue = BatchQueue(colours, waiting=4, batch=2, gather=0)
    job = queue.submit([Recipe(prompt="teal", seed=1, sampling=DEFAULTS)])
    while not colours.batches:
        colours.held.wait(0.01)
    job.cancel()
    colours.held.wait(0.2)
    assert queue.counts.abandoned == 1
    colours.held.set()
    queue.stop()


def test_an_open_address_without_tokens_is_refused(colours: Colours) -> None:
    with pytest.raises(ServeError, match=r"host 0\.0\.0\.0 is open to others; give tokens"):
        serve_api(colours, defaults=DEFAULTS, host="0.0.0.0")


def test_without_the_extra_its_name_is_said(
    colours: Colours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "l2p_serve.api.endpoints", None)
    with (
        pytest.raises(ServeError, match=r'need FastAPI: pip install "l2p-serve\[api\]"'),
        api_application(colours, defaults=DEFAULTS, folder=tmp_path),
    ):
        pass


def test_every_public_name_is_there_without_an_extra() -> None:
    code = "import sys\nfor name in ('fastapi', 'uvicorn', 'starlette', 'gradio'): sys.modules[name] = None\n"
    code += "import l2p_serve\nfor name in l2p_serve.__all__: getattr(l2p_serve, name)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_neither_torch_nor_gradio_is_loaded_for_it() -> None:
    code = "import sys; from l2p_serve import serve_api, BatchQueue, Recipe, Limits\n"
    code += "sys.exit(str({'torch', 'diffusers', 'gradio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def test_a_mask_is_turned_as_its_picture_is() -> None:
    from l2p_serve.api.requests import _transparent

    image = Image.new("RGBA", (40, 24), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 24))  # its left strip; turned upright, the top
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, format="PNG", exif=exif)
    area = _transparent(buffer.getvalue(), "image")
    assert area is not None and area.size == (24, 40) and area.getbbox() == (0, 0, 24, 10)


def test_what_no_file_can_be_called_is_not_there(client: TestClient) -> None:
    assert client.get(f"/v1/images/files/{'a' * 300}").status_code == 404


def test_a_wrong_strength_leaves_no_picture_behind(client: TestClient, tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (80, 48)).save(buffer, format="PNG")
    answer = client.post(
        "/v1/images/edits",
        data={"prompt": "teal", "strength": "abc"},
        files={"image": ("a.png", buffer.getvalue(), "image/png")},
    )
    assert answer.status_code == 400 and not list(tmp_path.glob(".*-image.png"))


def test_old_pictures_go_and_what_is_hidden_stays(client: TestClient, tmp_path: Path) -> None:
    for name in (".lock.txt", ".lock", "old.png"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert ask(client, prompt="teal", response_format="url").status_code == 200
    assert (tmp_path / ".lock.txt").exists() and (tmp_path / ".lock").exists()
    assert not (tmp_path / "old.png").exists()
