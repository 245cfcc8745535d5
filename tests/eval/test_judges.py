"""Judges: a tiny BLIP of the real class, and a server on loopback."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from l2p_eval.dpg.judges import ServerJudge, VqaJudge, says_yes
from l2p_eval.errors import EvalError
from PIL import Image


class Model:
    """Says yes to red pictures; is busy once."""

    bodies: ClassVar[list[Any]] = []
    busy: ClassVar[int] = 0

    @classmethod
    def answer(cls, body: Any) -> tuple[int, Any]:
        cls.bodies.append(body)
        if body["model"] == "missing":
            return 404, {"error": "no such model"}
        if cls.busy:
            cls.busy -= 1
            return 503, {"error": "busy"}
        if body["model"] == "odd":
            return 200, {"nothing": []}
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        answer = "Yes." if image.getpixel((0, 0)) == (255, 0, 0) else "no"
        return 200, {"choices": [{"message": {"content": answer}}]}


@pytest.fixture
def url(serve_chat: Callable[..., str]) -> str:
    Model.bodies.clear()
    return serve_chat(Model.answer)


def test_a_server_sees_the_picture_and_the_question(url: str) -> None:
    judge = ServerJudge(base_url=url, model="vlm")
    Model.busy = 1  # a passing fault is tried again
    assert judge.answer(Image.new("RGB", (8, 8), (255, 0, 0)), "Is it red?")
    assert not judge.answer(Image.new("RGB", (8, 8), (0, 0, 255)), "Is it red?")
    assert len(Model.bodies) == 3
    assert Model.bodies[0]["messages"][0]["content"][1]["text"].startswith("Is it red?")
    assert Model.bodies[0]["temperature"] == 0
    assert judge.name == "vlm (server)"


def test_a_server_that_cannot_answer_is_one_clear_error(url: str) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(EvalError, match=r"HTTP 404: .*no such model"):
        ServerJudge(base_url=url, model="missing").answer(image, "?")
    with pytest.raises(EvalError, match="an unexpected answer"):
        ServerJudge(base_url=url, model="odd", attempts=1).answer(image, "?")
    with pytest.raises(EvalError, match=r"does not answer: .*refused"):
        ServerJudge(base_url="http://127.0.0.1:9/v1", model="m", attempts=1).answer(image, "?")
    with pytest.raises(EvalError, match="is no http address"):
        ServerJudge(base_url="file:///etc/passwd", model="m")


def test_a_model_answers_and_the_answer_is_its_own_generation(blip: Path) -> None:
    judge = VqaJudge(blip)
    image = Image.new("RGB", (40, 40), "red")
    assert judge.answer(image, "is there a dog") is judge.answer(image, "is there a dog")
    yes = SimpleNamespace(sequences=torch.tensor([[1, 9, 2]]), logits=[torch.zeros(1, 11)])
    judge.network.generate = lambda **inputs: yes
    assert judge.answer(image, "is there a dog") is True
    assert (judge.name, len(judge.weights_sha256)) == (f"{blip.name} (transformers)", 64)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"no config\.json"):
        VqaJudge(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(EvalError, match="holds no visual-question-answering model"):
        VqaJudge(tmp_path)


def test_only_a_yes_is_a_yes() -> None:
    assert [says_yes(text) for text in ("yes", " Yes, it is", "no", "", "yesterday", "maybe yes")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
