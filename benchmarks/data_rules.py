"""How many prompts a second the rules judge on one core, without MinHash.

    POLARS_MAX_THREADS=1 uv run python benchmarks/data_rules.py

Prompts of the paper's length (200-350 characters) over the whole category tree, a third of them with text in
quotes and one in ten with something to be dropped for. CPU time is counted beside the clock, because machines
are shared.
"""

import os
import random
import sys
import time

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import polars as pl
from l2p_data import FilterRules, filter_prompts, load_taxonomy, prompt_records

COUNT = 50_000
PLACES = ["the edge of a quiet harbour", "a sunlit attic", "a busy night market", "a bare white studio"]
SENTENCES = [
    "Soft morning light falls across its surface and picks out every scratch",
    "A thin mist drifts over the ground behind it, hiding the far wall",
    "The camera looks up from a low angle, so that it towers against the sky",
    "Several gulls circle above, out of focus, in the pale blue distance",
    "Dust and tiny cracks are visible in the paint, and one corner is worn to the wood",
    "A woman in a green coat walks past without looking up from her book",
    "Warm and cool colours meet where the lamp ends and the window begins",
]
QUOTED = 'A small painted sign beside it reads "OPEN {number}" in white letters'
FAULTS = [
    "masterpiece, best quality, 8k, ",
    "Sure, here is a prompt: ",
    "A naked man. ",
    "An iPhone. ",
    "A sign that says OPEN. ",
]


def prompts(count: int) -> pl.DataFrame:
    """The same prompts in every run."""
    rng, leaves, texts = random.Random(0), load_taxonomy().categories, []
    for number in range(count):
        parts = [f"A {rng.choice(leaves).category} stands at {rng.choice(PLACES)}"]
        parts += rng.sample(SENTENCES, rng.choice((2, 3)))
        if number % 3 == 0:
            parts.append(QUOTED.format(number=number))
        fault = rng.choice(FAULTS) if number % 10 == 0 else ""
        texts.append(f"{fault}{'. '.join(parts)}, number {number}.")
    return prompt_records(texts)


def main() -> int:
    frame, rules = prompts(COUNT), FilterRules.paper()
    filter_prompts(frame.head(1000), rules)
    clock, cpu = time.perf_counter(), time.process_time()
    judged = filter_prompts(frame, rules)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    length = frame["prompt"].str.len_chars().mean()
    keep = (judged["status"] == "keep").mean()
    print(f"{COUNT:,} prompts of {length:.0f} characters on average, {keep:.0%} kept")
    print(f"{COUNT / cpu:,.0f} prompts/s of CPU time, {COUNT / clock:,.0f} by the clock")
    return 0


if __name__ == "__main__":
    sys.exit(main())
