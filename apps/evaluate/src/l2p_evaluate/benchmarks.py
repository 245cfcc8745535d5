"""GenEval and DPG-Bench (Table 1)."""

import argparse
import json
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from l2p_eval.dpg.benchmark import DpgPrompt, ask, crops, read_dpg, summarise_dpg
from l2p_eval.errors import EvalError
from l2p_eval.geneval import GenEvalPrompt, ImageScore, prompts_sha256, read_metadata, summarise
from l2p_eval.layout import image_path, open_image, read_folder, score_folder, write_prompts
from l2p_eval.painting import plan_jobs
from l2p_eval.report.scorecard import Failure

from l2p_evaluate.arguments import positive
from l2p_evaluate.errors import EvaluateError
from l2p_evaluate.hashing import sha256_of
from l2p_evaluate.pictures import Pictures, Progress
from l2p_evaluate.scorers import Score, Scorer, device, need


class GenEval(Scorer):
    """Share of images that show what their prompt asks for."""

    title = "GenEval"
    paper = "geneval"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--metadata", type=Path, metavar="FILE", help="evaluation_metadata.jsonl; needed with --model")
        add(
            "--detector", choices=("coco", "scenes"), default="coco", help="scenes: the miniature's exact one"
        )
        add("--detector-model", type=Path, metavar="DIR", help="Mask2Former (Swin-S, COCO instance)")
        add("--color-model", type=Path, metavar="DIR", help="CLIP (ViT-L/14)")

    def __init__(self, options: argparse.Namespace) -> None:
        self.per_prompt: int | None = options.images_per_prompt
        self.metadata: Path | None = options.metadata
        if options.model:
            need(self.metadata, "--metadata", "GenEval's evaluation_metadata.jsonl, or one in its format")
        self.rows = read_metadata(self.metadata) if self.metadata else []
        self.prompts = [row.prompt for row in self.rows]
        self.colors: Any = None
        if options.detector == "scenes":
            from l2p_mini.detector import ExactDetector

            self.detector: Any = ExactDetector()
        else:
            from l2p_eval.geneval.detectors import ClipColors, Mask2FormerDetector

            wanted = "a transformers directory; --detector scenes needs none, for the miniature"
            paths = [
                need(value, option, wanted)
                for option, value in (
                    ("--detector-model", options.detector_model),
                    ("--color-model", options.color_model),
                )
            ]
            self.detector = Mask2FormerDetector(paths[0], device=device())
            self.colors = ClipColors(paths[1], device=device())

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        if pictures.model:
            write_prompts(pictures.folder, self.rows)
        scores: list[ImageScore] = []
        problem = ""
        try:
            prompts = self._prompts(pictures)
            score_folder(
                pictures.folder,
                self.detector,
                colors=self.colors,
                images_per_prompt=self.per_prompt or (1 if pictures.model else None),
                on_image=lambda done, total: progress(done, total, f"judging {pictures.name}"),
                on_score=scores.append,
            )
        except EvalError as error:
            if not scores:
                raise
            problem = str(error)
        summary = summarise(scores)
        failures = [score for score in scores if not score.correct]
        definition = {
            "rules": "GenEval, official thresholds",
            "detector": _described(self.detector),
            "colours": _described(self.colors) if self.colors else "the detector's own",
            "resize": getattr(self.detector, "preprocessing", "none"),
            "metadata": f"{self.metadata.name} sha256 {sha256_of(self.metadata)}"
            if self.metadata
            else "the folder's",
            "prompts sha256": prompts_sha256(prompts),
            "n": f"{summary.image_count} images of {summary.prompt_count} prompts",
        }
        return Score(
            values={"overall": summary.overall, **summary.tags, "images": summary.images},
            definition=definition,
            failures=[
                Failure(path=pictures.folder / row.path, prompt=row.prompt, reason=row.reason)
                for row in failures
            ],
            details={"scores": summary.to_row(), "images": [asdict(score) for score in scores]},
            problem=problem,
        )

    def _prompts(self, pictures: Pictures) -> list[GenEvalPrompt]:
        """The folder's prompts, which have to be those of --metadata where it is given."""
        found = list({sample.prompt_index: sample.prompt for sample in read_folder(pictures.folder)}.values())
        for index, (there, wanted) in enumerate(zip_longest(found, self.rows if self.metadata else found)):
            if there != wanted:
                raise EvalError(
                    f"{pictures.folder}: prompt {index:05d} is {there.prompt if there else 'missing'!r} and"
                    f" {wanted.prompt if wanted else 'nothing'!r} in --metadata; give the folder's own"
                )
        return found


def _described(model: Any) -> str:
    """A scoring model's name and weights."""
    weights = getattr(model, "weights_sha256", "")
    return f"{model.name}, weights sha256 {weights}" if weights else model.name


class Dpg(Scorer):
    """Yes or no to questions about dense prompts. Answers are kept, so that a judge is asked only once."""

    title = "DPG-Bench"
    paper = "dpg"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--csv", type=Path, required=True, metavar="FILE", help="dpg_bench.csv")
        add(
            "--judge-model", type=Path, metavar="DIR", help="a visual-question-answering model (transformers)"
        )
        add("--judge-server", metavar="URL", help="an OpenAI-compatible server, with --judge-name")
        add("--judge-name", metavar="MODEL", help="the server's model")
        add("--mode", choices=("official_compat", "fixed"), default="official_compat", help="how to add up")
        add("--grid", type=positive, metavar="PX", help="--images holds ITEM.png grids of 2 x 2 images of PX")

    def __init__(self, options: argparse.Namespace) -> None:
        self.csv, self.mode, self.grid = options.csv, options.mode, options.grid
        self.per_prompt, self.output = options.images_per_prompt or 1, options.output
        self.rows = read_dpg(self.csv)
        self.prompts = [row.text for row in self.rows]
        from l2p_eval.dpg.judges import ServerJudge, VqaJudge

        if bool(options.judge_model) == bool(options.judge_server):
            raise EvaluateError("give one judge: --judge-model DIR, or --judge-server URL with --judge-name")
        if options.judge_server:
            name = need(options.judge_name, "--judge-name", "the model that the server shall use")
            self.judge: Any = ServerJudge(base_url=options.judge_server, model=name)
        else:
            self.judge = VqaJudge(options.judge_model, device=device())
        self.paper = "dpg"

    def score(self, pictures: Pictures, progress: Progress) -> Score:
        ledger = _Ledger(self.output / f"answers-{pictures.name}.jsonl", self._identity(pictures))
        problem = ""
        for number, prompt in enumerate(self.rows):
            if prompt.item_id not in ledger.answers:
                try:
                    images = self._images(pictures, number, prompt)
                    ledger.add(prompt.item_id, ask(self.judge, prompt, images))
                except EvalError as error:
                    if not ledger.answers:
                        raise
                    problem = str(error)
                    break
            progress(number + 1, len(self.rows), f"questions about {pictures.name}")
        scores = summarise_dpg(self.rows, ledger.answers, self.mode)
        return Score(
            values={"average": scores.average, **scores.broad},
            definition={
                "mode": self.mode,
                "judge": self.judge.name,
                "judge's weights sha256": self.judge.weights_sha256 or "unknown (a server's)",
                "resize": self.judge.preprocessing,
                "patches": f"2 x 2 grids of {self.grid} px" if self.grid else "none: whole images",
                "csv": f"{self.csv.name} sha256 {sha256_of(self.csv)}",
                "n": f"{scores.image_count} images of {scores.prompt_count} prompts",
            },
            details={"detailed": dict(scores.detailed)},
            problem=problem,
        )

    def _identity(self, pictures: Pictures) -> dict[str, str]:
        return {
            "judge": self.judge.name,
            "csv": sha256_of(self.csv),
            "folder": str(pictures.folder.resolve()),
            "grid": str(self.grid),
        }

    def _images(self, pictures: Pictures, number: int, prompt: DpgPrompt) -> list[Any]:
        if pictures.model:
            jobs = plan_jobs([prompt.text], self.per_prompt, 0)
            return [open_image(image_path(pictures.folder, number, job.sample)) for job in jobs]
        path = pictures.folder / f"{prompt.item_id}.png"
        if not path.is_file():
            raise EvalError(
                f"{pictures.folder} has no {path.name}; DPG-Bench has one image or grid per item_id"
            )
        image = open_image(path)
        try:
            return crops(image, self.grid) if self.grid else [image]
        except EvalError as error:
            raise EvalError(f"{path}: {error}") from None


class _Ledger:
    """Answers by item_id, one JSON line each as they come; of one judge, CSV and folder."""

    def __init__(self, path: Path, identity: dict[str, str]) -> None:
        self.path, self.answers = path, {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if not lines or _parsed(lines[0]) != identity:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(identity) + "\n", encoding="utf-8")
            lines = []
        for line in lines[1:]:
            if row := _parsed(line):  # a crash can have cut the last line
                self.answers[row["item_id"]] = [
                    {int(key): value for key, value in image.items()} for image in row["images"]
                ]

    def add(self, item_id: str, images: list[dict[int, bool]]) -> None:
        self.answers[item_id] = images
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"item_id": item_id, "images": images}) + "\n")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
