"""Category -> structured prompt records (sec. 3.2, "General Prompt Generation").

A record is a row of `PROMPT_SCHEMA` (records.py). Every answer of an engine becomes a row: one that could not
be used has its cause in `problem`, and the filter drops it with that reason, so nothing vanishes unseen.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import polars as pl

from l2p_data.corpus.identity import digest, stable_id, stable_seed
from l2p_data.engines.llm import Category, PromptRequest, TextGenerator
from l2p_data.errors import DataError, checks
from l2p_data.prompts.records import PROMPT_SCHEMA

_MOST_PROMPTS = 1_000_000_000
_HOPELESS = 500  # unusable answers, each another, without a usable one
_DRY_ATTEMPTS = 200  # so many answers in a row without anything new mean that a category has no more to give


@checks
def generate_prompts(
    generator: TextGenerator,
    count: int,
    *,
    categories: Sequence[Category] | None = None,
    seed: int = 0,
    kind: str = "detailed",
) -> pl.DataFrame:
    """Write `count` distinct prompts, spread over the categories by their weights.

    Args:
        generator: the engine that writes.
        count: number of usable records wanted.
        categories: leaves to write about; default: `generator.categories`.
        seed: the records are a pure function of it and of the engine.
        kind: "simple", "detailed" or "mixed" (one simple prompt in four), passed to the engine (Fig. 10).

    Returns:
        A frame of `PROMPT_SCHEMA` in a shuffled but reproducible order, with `count` usable rows and,
        besides, one row for each answer that was no valid record (`problem` is not null).

    Raises:
        DataError: the engine cannot give so many distinct prompts.
    """
    check_count(count)
    if kind not in ("simple", "detailed", "mixed"):
        raise DataError(f"kind {kind!r} is not known; use simple, detailed or mixed")
    leaves = list(categories if categories is not None else getattr(generator, "categories", ()))
    if not leaves:
        raise DataError(
            f"no categories for engine {generator.name!r}; pass some, for example from a taxonomy"
        )
    usable: dict[str, dict[str, str | None]] = {}  # by normalised prompt
    unusable: dict[str, dict[str, str | None]] = {}  # by record id
    attempts, dry = [0] * len(leaves), [0] * len(leaves)
    while len(usable) < count:
        open_leaves = [index for index in range(len(leaves)) if dry[index] < _DRY_ATTEMPTS]
        if not open_leaves:
            raise DataError(
                f"{generator.name} gave only {len(usable)} distinct prompts in {sum(attempts)} "
                f"attempts, {count} were wanted; ask for fewer, or add categories, templates or words"
            )
        shares = apportion(count - len(usable), [leaves[index].weight for index in open_leaves])
        sources = [index for index, share in zip(open_leaves, shares, strict=True) for _ in range(share)]
        requests = []
        for index in sources:
            requests.append(request_of(leaves[index], attempts[index], seed, kind))
            attempts[index] += 1
        for index, record in zip(sources, _answers(generator, requests), strict=True):
            key = " ".join(str(record["prompt"]).split()).casefold()
            if record["problem"] is not None:
                unusable.setdefault(str(record["id"]), record)
            new = record["problem"] is None and key not in usable
            dry[index] = 0 if new else dry[index] + 1
            if new:
                usable[key] = record
        if not usable:
            _refuse_hopeless(generator, unusable)
    rows = sorted([*usable.values(), *unusable.values()], key=lambda row: digest(seed, str(row["id"])))
    return pl.DataFrame(rows, schema=PROMPT_SCHEMA)


def check_count(count: int) -> None:
    """Raise `DataError` for a number of prompts that nobody can write."""
    if not 1 <= count <= _MOST_PROMPTS:
        raise DataError(f"count is {count}; ask for 1 prompt at least and {_MOST_PROMPTS:,} at most")


def _refuse_hopeless(generator: TextGenerator, unusable: dict[str, dict[str, str | None]]) -> None:
    """Stop an engine that has given nothing but unusable answers: it is not asked 200 times a category."""
    if len(unusable) < _HOPELESS:
        return
    (cause, times), *_ = Counter(str(record["problem"]) for record in unusable.values()).most_common(1)
    raise DataError(
        f"{generator.name} gave {len(unusable)} answers and no prompt among them, {times} of them: {cause}; "
        "use another model, more max_tokens, or another seed"
    )


def request_of(leaf: Category, attempt: int, seed: int, kind: str) -> PromptRequest:
    """Return the request of an attempt, counted from 0, for a leaf; one in four of kind "mixed" is simple."""
    request_seed = stable_seed("prompt", seed, *leaf.path, attempt)
    drawn = ("simple" if request_seed % 4 == 0 else "detailed") if kind == "mixed" else kind
    return PromptRequest(category=leaf, seed=request_seed, kind=drawn)


def _answers(generator: TextGenerator, requests: Sequence[PromptRequest]) -> Iterator[dict[str, str | None]]:
    """Yield a record of each answer, in the order of the requests."""
    answers = generator.generate(requests)
    if len(answers) != len(requests):
        raise RuntimeError(f"{generator.name} returned {len(answers)} answers to {len(requests)} requests")
    for request, answer in zip(requests, answers, strict=True):
        yield record_of(answer, request, generator.name)


def apportion(count: int, weights: Sequence[float]) -> list[int]:
    """Split `count` over `weights` in whole numbers that sum to it, each within one of its exact share.

    So is every run of neighbours: a branch of the tree gets its share even of a count below the number of
    leaves. (Largest remainders would go to the leaves of the branches with the fewest.)
    """
    total = sum(weights)
    if not total > 0:
        raise DataError(f"the weights of the {len(weights)} categories sum to {total:g}; give one a weight")
    ends = [0, *(math.floor(count * sum_ / total + 0.5) for sum_ in accumulate(weights))]
    return [end - start for start, end in pairwise(ends)]


def parse_answer(answer: str) -> tuple[str, str | None]:
    """Return an engine's answer -> (prompt, None), or (the answer as it came, what is wrong with it)."""
    text = answer.strip()
    if text.startswith("```"):  # a fenced block is the commonest harmless decoration of chat models
        text = text.strip("`").removeprefix("json").strip()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return answer, "answer is not JSON"
    if not isinstance(content, dict):
        return answer, "answer is not a JSON object"
    if isinstance(content.get("error"), str):
        return answer, content["error"]
    prompt = content.get("prompt")
    if not isinstance(prompt, str):
        return answer, 'answer has no text under "prompt"'
    if not prompt.strip():
        return answer, "answer has an empty prompt"
    return prompt.strip(), None


def record_of(answer: str, request: PromptRequest, created_by: str) -> dict[str, str | None]:
    """Return a row of `PROMPT_SCHEMA`; an answer that is no prompt has its cause in `problem`."""
    prompt, problem = parse_answer(answer)
    # Lone surrogates can come out of "\ud83d" escapes; they are no text and no file could hold them.
    prompt = prompt.encode("utf-8", "replace").decode("utf-8")
    category = request.category
    return {
        "id": stable_id(created_by, *category.path, category.language, prompt),
        "prompt": prompt,
        "language": category.language,
        "category": category.category,
        "subclass": category.subclass,
        "superclass": category.superclass,
        "created_by": created_by,
        "problem": problem,
    }
