"""Area `options`: command lines, with the options that the parsers themselves name."""

import argparse
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.case import Case
from fuzzing.values import ODD_TEXTS

OUTSIDE = ("/", "~", "..", "$HOME")  # a case stays in its folder
VALUES = (
    *(text for text in ODD_TEXTS if not {"\0", "\ud800"} & {*text} and not text.startswith(OUTSIDE)),
    *(
        "-5",
        "1.5",
        "inf",
        "-inf",
        "1e-400",
        "18446744073709551616",
        "9" * 40,
        "0x10",
        "1_0",
        "٣",
        "1,2",
        "a=b",
    ),
    *("m", "source", "pictures", "corpus", "c.toml", "prompts.parquet", "grammar.toml", "nowhere", "run"),
)
COPIES = {
    **{"m": "run/model", "run": "run", "source": "source", "pictures": "pictures", "corpus": "corpus"},
    **{"c.toml": "tiny.toml", "prompts.parquet": "prompts.parquet", "grammar.toml": "grammar.toml"},
    **{"metadata.jsonl": "metadata.jsonl", "lora.safetensors": "lora.safetensors"},
}
LASTING = {
    "--server",
    "--vllm",
    "--ray-address",
    "--executor",
    "--workers",
    "--judge-server",
    "--open",
    "--port",
}
"""Options that wait for other machines, or start others."""
BASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "l2p-transfer": (("c.toml", "--dry-run"),),
    "l2p-ablate": (("c.toml", "--dry-run"),),
    "l2p-train": (("c.toml", "--dry-run"),),
    "l2p-generate": (
        ("a ring", "--model", "m", "--steps", "1", "--height", "16", "--width", "16", "--device", "cpu"),
    ),
    "l2p-evaluate": (
        ("patch-grid", "--images", "x=pictures", "-o", "out", "--json"),
        (
            "geneval",
            "--images",
            "x=pictures",
            "--detector",
            "scenes",
            "--metadata",
            "metadata.jsonl",
            "-o",
            "out",
        ),
        ("diversity", "--images", "x=pictures", "--features", "efficientnet-lite0", "-o", "out"),
    ),
    "l2p-data": (
        ("taxonomy", "--json"),
        ("prompts", "--grammar", "grammar.toml", "--count", "3", "--out", "p.parquet"),
        ("filter", "prompts.parquet", "--out", "p.parquet", "--json"),
        ("synthesize", "prompts.parquet", "--model", "source", "--out", "made", "--width", "64", "--dry-run"),
        ("stats", "corpus", "--json"),
        ("verify", "corpus"),
        ("export", "corpus", "--out", "out"),
        ("import", "pictures", "--out", "made"),
    ),
    "l2p-arch": (
        ("identify", "m"),
        ("convert", "source", "out", "--head-channels", "8", "8", "16", "16"),
        ("export", "m", "out.safetensors"),
        ("quantise", "m", "out"),
        ("upscale", "m", "out", "--patch-size", "32"),
    ),
}


def options(seeds: Path) -> st.SearchStrategy[Case]:
    """A command line that works, with one to three options added or exchanged."""
    parsers = {
        "l2p-transfer": _parser("l2p_transfer.cli", "_parser"),
        "l2p-ablate": _parser("l2p_ablate.cli", "_parser"),
        "l2p-train": _parser("l2p_train.__main__", "_parser"),
        "l2p-generate": _parser("l2p_generate.options", "parser"),
        "l2p-data": _parser("l2p_data.arguments", "build_parser"),
        "l2p-arch": _parser("l2p_arch.cli", "parser"),
    }
    known = {name: _flags(parser) for name, parser in parsers.items()}
    known["l2p-evaluate"] = {
        "": ["--seed", "--steps", "--height", "--metadata", "--images-per-prompt", "--features"]
    }
    return st.sampled_from(sorted(BASES)).flatmap(lambda program: _line(program, known[program]))


def _parser(module: str, name: str) -> argparse.ArgumentParser:
    from importlib import import_module

    made: argparse.ArgumentParser = getattr(import_module(module), name)()
    return made


def _flags(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """Options of a parser, and of each of its commands."""
    found = {"": [text for action in parser._actions for text in action.option_strings]}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found[name] = _flags(sub)[""]
    return found


@st.composite
def _line(draw: Any, program: str, known: dict[str, list[str]]) -> Case:
    line = list(draw(st.sampled_from(BASES[program])))
    flags = [flag for flag in known.get(line[0], known[""]) if flag not in LASTING]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["option", "option", "option", "exchange", "drop", "bare"]))
        place = draw(st.integers(0, len(line) - 1))
        if kind == "exchange":
            line[place] = draw(st.sampled_from(VALUES))
        elif kind == "drop" and len(line) > 1 and line[place] != "--dry-run":
            del line[place]
        elif kind == "bare":
            line.append(draw(st.sampled_from(flags)))
        else:
            line += [draw(st.sampled_from(flags)), draw(st.sampled_from(VALUES))]
    if program == "l2p-data" and line[0] == "synthesize" and "--dry-run" not in line:
        line.append("--dry-run")
    return Case(area="options", command=(program, *line), copies=dict(COPIES))
