"""What a judge said, kept by the content of what it was asked about.

An answer belongs to one image (its pixels), one question and one judge. Whoever paints other images into the
same folder, edits a question or takes another judge gets other keys, and the judge is asked again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from l2p_run import hashes, places
from l2p_run.errors import explained, raised_as
from PIL import Image

from l2p_eval.dpg.benchmark import DpgPrompt, Judge, ask
from l2p_eval.errors import EvalError


class Answers:
    """A judge that is asked once about the same image and question.

    Args:
        path: JSON lines that answers are added to as they come; None keeps them in memory only.
        judge: its `identity` (or name, weights and preprocessing) is part of every key.
    """

    def __init__(self, path: Path | None, judge: Judge) -> None:
        self.path, self.judge = path, judge
        self.identity = getattr(judge, "identity", None) or [
            getattr(judge, "name", type(judge).__name__),
            getattr(judge, "weights_sha256", ""),
            getattr(judge, "preprocessing", ""),
        ]
        self._known = _read(path) if path else {}

    def about(self, prompt: DpgPrompt, images: Sequence[Image.Image]) -> list[dict[int, bool]]:
        """Question number -> yes, for each image of a prompt."""
        return [self._one(prompt, image) for image in images]

    def _one(self, prompt: DpgPrompt, image: Image.Image) -> dict[int, bool]:
        pixels = hashes.of_bytes(f"{image.mode} {image.size}".encode() + image.tobytes())
        texts = [question.text for question in prompt.questions]
        key = hashes.of_settings([self.identity, pixels, texts])
        if len(self._known.get(key, ())) != len(texts):
            answers = ask(self.judge, prompt, [image])[0]
            self._known[key] = [answers[question.number] for question in prompt.questions]
            self._keep(key, prompt.item_id)
        return {
            question.number: said for question, said in zip(prompt.questions, self._known[key], strict=True)
        }

    def _keep(self, key: str, item_id: str) -> None:
        if self.path is None:
            return
        line = json.dumps({"key": key, "item_id": item_id, "answers": self._known[key]})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise EvalError(explained(f"cannot write to {self.path}", error)) from error


@raised_as(EvalError)
def _read(path: Path) -> dict[str, list[bool]]:
    """Return the answers of a file; a line that a crash cut, or that an earlier version wrote, is none."""
    known = {}
    text = places.read_bytes(path).decode("utf-8", "replace") if places.is_file(path) else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            answers = row["answers"]
            if isinstance(row["key"], str) and all(isinstance(answer, bool) for answer in answers):
                known[row["key"]] = answers
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    if text and not text.endswith("\n"):  # what comes next must not hang on to the cut line
        with raised_as(EvalError):
            places.write_text(path, text[: text.rfind("\n") + 1])
    return known
