"""GenEval: does the picture show the objects, counts, colours and positions that its prompt asks for?

The rules are those of the official evaluator (Ghosh et al. 2023; sec. 4.1 and Table 1 of the paper). Finding
objects is left to a `Detector`, naming their colour to a `ColorClassifier` when the detector does not name
it, so that the same rules judge COCO photographs and rendered scenes alike.
"""

from l2p_eval.geneval.metadata import (
    RELATIONS,
    TAGS,
    GenEvalPrompt,
    Requirement,
    parse_row,
    prompts_sha256,
    read_metadata,
)
from l2p_eval.geneval.rules import (
    OFFICIAL,
    ColorClassifier,
    Detection,
    Detector,
    Thresholds,
    Verdict,
    judge,
    relations,
)
from l2p_eval.geneval.summary import GenEvalScores, ImageScore, summarise
from l2p_eval.geneval.vocabulary import check_prompts

__all__ = [
    "OFFICIAL",
    "RELATIONS",
    "TAGS",
    "ColorClassifier",
    "Detection",
    "Detector",
    "GenEvalPrompt",
    "GenEvalScores",
    "ImageScore",
    "Requirement",
    "Thresholds",
    "Verdict",
    "check_prompts",
    "judge",
    "parse_row",
    "prompts_sha256",
    "read_metadata",
    "relations",
    "summarise",
]
