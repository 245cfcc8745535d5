"""Whether the pipeline of a directory takes the options of a call, before its weights are loaded."""

import difflib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path

from l2p_arch.errors import ArchError

OF_THE_PAINTER = ("prompt", "width", "height", "generator", "output_type")
"""Arguments of a pipeline that say which image."""


def check_call(directory: Path, options: Mapping[str, str], *, what: str = "the model's") -> None:
    """Raise for the first option that the pipeline of a directory does not take.

    A directory that holds no pipeline, or one that diffusers does not know, is for others to refuse.

    Args:
        options: each name with what it is called where it was given.
        what: whose pipeline it is, for errors.

    Raises:
        ArchError: with the nearest option that there is.
    """
    import diffusers

    try:
        index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
        pipeline = getattr(diffusers, index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    parameters = inspect.signature(pipeline.__call__).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name, called in options.items():
        if name in OF_THE_PAINTER:
            raise ArchError(f"{called} is set for each image by the run; leave it out")
        if name not in parameters:
            known = [one for one in parameters if one not in ("self", *OF_THE_PAINTER)]
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ArchError(f"{called} is no argument of {what} {pipeline.__name__}; {remedy}")
