"""Table 1, and how wide it is: the shipped pixel model and its source over several sets of seeds.

    uv run python benchmarks/eval_seed_sets.py --sets 4 --publish docs/results

One image of each of the 120 evaluation prompts a set, so that four sets are 480 images of each model. Says
mean and deviation over sets of both scores and of the share that is kept, set by set. Run again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2p_eval.geneval import read_metadata
from l2p_eval.scores import geneval
from l2p_mini.detector import ExactDetector
from l2p_mini.paths import EVALUATION_METADATA, PIXEL_MODEL, SOURCE_MODEL
from painted import PIXEL, SOURCE, finish, model_of, parser_of, pictures_of, spread


def main() -> None:
    """Paint, score and print."""
    parser = parser_of(__doc__ or "", sets=4)
    parser.add_argument(
        "--model", type=Path, default=PIXEL_MODEL, help="a pixel model (default: the shipped)"
    )
    options = parser.parse_args()
    rows = read_metadata(EVALUATION_METADATA)
    prompts = [row.prompt for row in rows]
    models = {"source": model_of(SOURCE_MODEL, SOURCE), "l2p": model_of(options.model, PIXEL)}
    scores: dict[str, list[Any]] = {name: [] for name in models}
    for number in range(options.sets):
        for name, model in models.items():
            folder = options.output / "seed-sets" / name
            pictures = pictures_of(name, model, prompts, folder, number=number, batch=40)
            scores[name].append(geneval(pictures, ExactDetector(), prompts=rows).whole())
    overall = {name: [score.headline for score in each] for name, each in scores.items()}
    tags = {
        name: {
            tag: spread([score.values[tag] for score in each])
            for tag in scores["source"][0].details["scores"]["tags"]
        }
        for name, each in scores.items()
    }
    finish(
        "seed-sets",
        {
            "images": options.sets * len(prompts),
            "overall": {name: spread(values) for name, values in overall.items()},
            "kept": spread(
                [l2p / source for l2p, source in zip(overall["l2p"], overall["source"], strict=True)]
            ),
            "tasks": tags,
        },
        options,
    )


if __name__ == "__main__":
    main()
