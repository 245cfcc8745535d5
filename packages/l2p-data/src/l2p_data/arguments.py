"""The command line's arguments."""

import argparse
from pathlib import Path

from l2p_run.command import Parser, number, seed_argument


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `l2p-data`; `command` in its result names the command."""
    parser = Parser(
        prog="l2p-data", description="From nothing to a synthetic corpus (L2P, sec. 3.2).", package="l2p-data"
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        sub.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
        return sub

    sub = command("taxonomy", "list the category tree, or a part of it")
    _tree(sub)
    sub.add_argument("--text", default="", help="only leaves whose name contains this")

    sub = command("expand", "let an LLM propose more categories; writes a TOML to review")
    _tree(sub)
    _engine(sub)
    sub.add_argument("--per-group", type=number(int, ge=1, le=1000), default=4, help="new leaves per group")
    sub.add_argument("--seed", type=seed_argument, default=0)
    sub.add_argument("--out", type=Path, required=True, help="TOML to write")

    sub = command("prompts", "write prompts, from a grammar or by an LLM over the category tree")
    _engine(sub).add_argument("--grammar", type=Path, help="grammar TOML; no model needed")
    sub.add_argument("--extend", type=Path, metavar="TOML", help="your own tree, merged onto the shipped one")
    sub.add_argument("--kind", choices=["simple", "detailed", "mixed"], default="mixed")
    sub.add_argument(
        "--subjects", type=number(int, ge=1, le=1000), default=1, help="subjects of one sub-class per message"
    )
    sub.add_argument(
        "--count", type=number(int, ge=1, le=1_000_000_000), required=True, help="number of distinct prompts"
    )
    sub.add_argument("--seed", type=seed_argument, default=0)
    sub.add_argument("--out", type=Path, required=True, help="Parquet file to write")

    _filter(command("filter", "judge prompts; dropped ones stay in the file with their reason"))
    _synthesize(command("synthesize", "make images of the kept prompts; run it again to continue"))

    sub = command("verify", "re-read every byte of a corpus against its manifest")
    sub.add_argument("corpus", help="directory or address (s3://...)")
    sub.add_argument("--decode", action="store_true", help="also decode every image")

    sub = command("stats", "counts over a corpus or a prompt file")
    sub.add_argument("path", help="corpus directory or address, or prompt file")
    sub.add_argument("--contact-sheet", type=Path, metavar="PNG", help="also draw a sample of the images")
    sub.add_argument("--plot", type=Path, metavar="PNG", help="also draw the counts")
    sub.add_argument("--near-duplicates", action="store_true", help="also the share of near-duplicates")

    _export(command("export", "corpus -> image folder with metadata"))

    sub = command("import", "image folder with captions, Parquet or tar with images -> corpus")
    sub.add_argument("folder", help="directory or address, or a .parquet or .tar file with images")
    sub.add_argument("--background", default="white", metavar="COLOUR", help="under transparent images")
    sub.add_argument("--caption", metavar="COLUMN", help="column of the text, where there are several")
    sub.add_argument("--out", required=True, help="directory or address")
    return parser


def _export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("corpus", help="directory or address")
    sub.add_argument("--out", required=True, help="directory or address")
    sub.add_argument(
        "--layout",
        choices=["hub", "pairs", "sidecar"],
        default="hub",
        help="hub: file_name, text; pairs: image, prompt; sidecar: a .txt beside each image",
    )
    sub.add_argument("--metadata", choices=["jsonl", "csv", "parquet"], default="jsonl")


def _tree(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--superclass")
    sub.add_argument("--subclass")
    sub.add_argument("--extend", type=Path, metavar="TOML", help="your own tree, merged onto the shipped one")


def _engine(sub: argparse.ArgumentParser, required: bool = True) -> argparse._MutuallyExclusiveGroup:
    """Add the options of `engines.open_engine`; return the group of engines."""
    engine = sub.add_mutually_exclusive_group(required=required)
    engine.add_argument("--server", metavar="URL", help="an OpenAI-compatible server; key: OPENAI_API_KEY")
    engine.add_argument("--vllm", metavar="MODEL", help="a language model's directory or id, for vLLM on Ray")
    sub.add_argument("--model", help="the server's model")
    sub.add_argument("--temperature", type=number(ge=0, le=100), default=0.9)
    sub.add_argument(
        "--max-tokens",
        type=number(int, ge=1, le=1_000_000),
        default=512,
        help="of an answer; longer ones are cut off",
    )
    sub.add_argument(
        "--tensor-parallel", type=number(int, ge=1, le=1024), default=1, help="GPUs per vLLM replica"
    )
    sub.add_argument(
        "--replicas", type=number(int, ge=1, le=65_536), help="of vLLM; default: as many as the GPUs hold"
    )
    sub.add_argument("--ray-address", help="a running Ray cluster")
    sub.add_argument(
        "--vllm-set", action="append", default=[], metavar="NAME=VALUE", help="any other argument of vLLM"
    )
    sub.add_argument(
        "--journal", help="folder or address that keeps every answer; default: OUT.journal, beside OUT"
    )
    return engine


def _filter(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("prompts", type=Path, help=".parquet, .jsonl, .csv or .txt")
    sub.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    sub.add_argument(
        "--rules",
        choices=["lenient", "paper"],
        default="lenient",
        help="paper: 200-350 characters, full sentences",
    )
    sub.add_argument("--min-characters", type=number(int, ge=0, le=1_000_000))
    sub.add_argument("--max-characters", type=number(int, ge=1, le=1_000_000))
    sub.add_argument("--unsafe-score", type=number(gt=0, le=1000))
    sub.add_argument("--near-duplicates", action="store_true", default=None)
    sub.add_argument("--disable", action="append", default=[], metavar="REASON", help="leave a rule out")
    sub.add_argument("--audit", action="store_true", help="also ask --server or --vllm (Fig. 11)")
    _engine(sub, required=False)


def _synthesize(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("prompts", type=Path)
    sub.add_argument(
        "--model", required=True, help="diffusers directory, or id in the local Hugging Face cache"
    )
    sub.add_argument("--out", required=True, help="corpus directory or address (s3://...)")
    sub.add_argument("--seeds", type=number(int, ge=1, le=100_000), default=2, help="images per prompt")
    sub.add_argument("--width", type=number(int, ge=1, le=16_384), default=1024, help="px")
    sub.add_argument("--height", type=number(int, ge=1, le=16_384), help="px; default: the width")
    shapes = sub.add_mutually_exclusive_group()
    shapes.add_argument(
        "--bucket", action="append", default=[], metavar="WxH", help="a size; repeat it, each image gets one"
    )
    shapes.add_argument("--aspect-buckets", action="store_true", help="seven shapes of about --width squared")
    sub.add_argument("--steps", type=number(int, ge=1, le=10_000), help="the pipeline's num_inference_steps")
    sub.add_argument("--guidance", type=number(), help="the pipeline's guidance_scale")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other pipeline argument"
    )
    sub.add_argument("--batch-size", type=number(int, ge=1, le=65_536), default=8)
    sub.add_argument("--rows-per-shard", type=number(int, ge=1, le=1_000_000), default=64)
    sub.add_argument("--workers", type=number(int, ge=0, le=65_536), help="0: in this process")
    sub.add_argument("--threads", type=number(int, ge=1, le=65_536), default=1, help="per worker")
    sub.add_argument("--gpus-per-worker", type=number(ge=0, le=1024), help="0.5: two workers share a GPU")
    sub.add_argument("--dtype", default="auto")
    sub.add_argument(
        "--cpu-offload",
        action="store_true",
        help="parts of the pipeline on the GPU by turns: less memory, slower",
    )
    sub.add_argument("--image-format", default="png", help="png or jpeg")
    sub.add_argument(
        "--min-entropy", type=number(ge=0, le=8), default=0.0, help="bits; list images with less as failed"
    )
    sub.add_argument("--safety-model", help="transformers image-classification directory")
    sub.add_argument("--unsafe-label", action="append", default=[], help="label that counts as unsafe")
    sub.add_argument(
        "--min-text-match",
        type=number(ge=0, le=1),
        default=0.0,
        help="share of the quoted text that OCR must read, 0..1",
    )
    sub.add_argument("--ray-address", help="a running Ray cluster")
