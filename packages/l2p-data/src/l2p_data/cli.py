"""`l2p-data`: the stages of the data pipeline as commands. Results go to stdout, progress and errors to
stderr."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from l2p_data.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 ok, 2 usage or input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        result = options.run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    print(json.dumps(result, ensure_ascii=False) if options.json else _readable(result))
    return 0


def _taxonomy(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.taxonomy import load_taxonomy

    found = load_taxonomy(options.extend).find(
        superclass=options.superclass, subclass=options.subclass, text=options.text
    )
    leaves = [f"{' > '.join([c.superclass, c.subclass, c.group, c.category])}" for c in found.categories]
    return {"categories": len(leaves), "leaves": leaves}


def _expand(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.expansion import expand_taxonomy
    from l2p_data.openai import OpenAIGenerator
    from l2p_data.taxonomy import load_taxonomy

    tree = load_taxonomy(options.taxonomy).find(superclass=options.superclass, subclass=options.subclass)

    def report(done: int, total: int) -> None:
        print(
            f"groups {done}/{total}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True
        )

    generator = OpenAIGenerator(_server(options))
    expansion = expand_taxonomy(tree, generator, options.per_group, seed=options.seed, on_progress=report)
    expansion.save(options.out)
    return {
        "out": str(options.out),
        "added": [
            f"+ {' > '.join((c.superclass, c.subclass, c.group, c.category))}" for c in expansion.added
        ],
        "rejected": [f"{name}: {cause}" for name, cause in expansion.rejected],
    }


def _prompts(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.preview import prompt_stats
    from l2p_data.prompts import generate_prompts, write_prompts

    if options.grammar is not None:
        from l2p_data.grammar import GrammarGenerator

        prompts = generate_prompts(
            GrammarGenerator(options.grammar, seed=options.seed), options.count, seed=options.seed
        )
    else:
        from l2p_data.openai import OpenAIGenerator
        from l2p_data.taxonomy import load_taxonomy

        if options.model is None:
            raise DataError("--server needs --model, the name under which the server offers its model")
        leaves = load_taxonomy(options.taxonomy).categories
        generator = OpenAIGenerator(_server(options))
        prompts = generate_prompts(
            generator, options.count, categories=leaves, seed=options.seed, kind=options.kind
        )
    write_prompts(prompts, options.out)
    return {"out": str(options.out), **prompt_stats(prompts)}


def _server(options: argparse.Namespace) -> Any:
    import os

    from l2p_data.openai import OpenAIServer

    return OpenAIServer(
        base_url=options.server, model=options.model, api_key=os.environ.get("OPENAI_API_KEY")
    )


def _filter(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.filters import FilterRules, filter_prompts, reasons
    from l2p_data.prompts import read_prompts, write_prompts

    changes = {
        name: getattr(options, name)
        for name in ("min_characters", "max_characters", "unsafe_score", "near_duplicates")
        if getattr(options, name) is not None
    }
    changes["disabled"] = tuple(options.disable)
    rules = FilterRules.paper(**changes) if options.rules == "paper" else FilterRules(**changes)
    judged = filter_prompts(read_prompts(options.prompts), rules)
    if options.audit is not None:
        from l2p_data.audit import audit_prompts
        from l2p_data.openai import OpenAIGenerator

        if options.model is None:
            raise DataError("--audit needs --model, the name under which the server offers its model")
        options.server = options.audit
        judged = audit_prompts(judged, OpenAIGenerator(_server(options)))
    write_prompts(judged, options.out)
    kept = int((judged["status"] == "keep").sum())
    return {
        "out": str(options.out),
        "kept": kept,
        "dropped": judged.height - kept,
        "acceptance": round(kept / judged.height, 4),
        "reasons": reasons(judged),
    }


def _synthesize(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.prompts import read_prompts
    from l2p_data.synthesis import SynthesisConfig, SynthesisProgress, plan_shards, resolve_model, synthesize

    pipeline_kwargs: dict[str, Any] = dict(_assignment(text) for text in options.set)
    if options.steps is not None:
        pipeline_kwargs["num_inference_steps"] = options.steps
    if options.guidance is not None:
        pipeline_kwargs["guidance_scale"] = options.guidance
    config = SynthesisConfig(
        model=options.model,
        output=options.out,
        seeds_per_prompt=options.seeds,
        width=options.width,
        height=options.height or options.width,
        batch_size=options.batch_size,
        rows_per_shard=options.rows_per_shard,
        workers=options.workers,
        threads_per_worker=options.threads,
        dtype=options.dtype,
        ray_address=options.ray_address,
        pipeline_kwargs=pipeline_kwargs,
    )
    prompts = read_prompts(options.prompts)
    if options.dry_run:
        from l2p_data.filters import kept

        shards = plan_shards(kept(prompts), config)
        images = sum(len(rows) for rows in shards)
        return {
            "model": str(resolve_model(options.model)),
            "images": images,
            "shards": len(shards),
            "written": 0,
        }

    def report(state: SynthesisProgress) -> None:
        counts = f"images {state.images}/{state.total}  shards {state.shards}/{state.total_shards}"
        line = f"{counts}  failed {state.failed}"
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    manifest = synthesize(prompts, config, report)
    return {
        "out": str(options.out),
        "rows": manifest.rows,
        "failed": len(manifest.failures),
        "failures": [f"{failure.id}: {failure.error}" for failure in manifest.failures],
    }


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.dataset import verify

    return {"corpus": str(options.corpus), "ok": True, **verify(options.corpus, decode=options.decode)}


def _stats(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.preview import contact_sheet, corpus_stats, prompt_stats
    from l2p_data.prompts import read_prompts

    if options.path.is_file():
        return prompt_stats(read_prompts(options.path))
    stats = corpus_stats(options.path)
    if options.contact_sheet is not None:
        stats["contact_sheet"] = str(contact_sheet(options.path, options.contact_sheet))
    return stats


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.folders import export_folder

    return {
        "out": str(options.out),
        "images": export_folder(options.corpus, options.out, metadata=options.metadata),
    }


def _import(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data.folders import import_folder

    manifest = import_folder(options.folder, options.out)
    failures = [f"{failure.id}: {failure.error}" for failure in manifest.failures]
    return {"out": str(options.out), "rows": manifest.rows, "failed": len(failures), "failures": failures}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="l2p-data", description="From nothing to a synthetic corpus (L2P, sec. 3.2)."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run: Callable[[argparse.Namespace], dict[str, Any]], help: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        sub.set_defaults(run=run)
        return sub

    sub = command("taxonomy", _taxonomy, "list the category tree, or a part of it")
    sub.add_argument("--superclass")
    sub.add_argument("--subclass")
    sub.add_argument("--text", default="", help="only leaves whose name contains this")
    sub.add_argument("--extend", type=Path, metavar="TOML", help="merge your own tree onto the shipped one")

    sub = command("expand", _expand, "let an LLM propose more categories; writes a TOML to review")
    sub.add_argument("--server", required=True, help="base URL of an OpenAI-compatible server")
    sub.add_argument("--model", required=True, help="the server's model")
    sub.add_argument("--superclass")
    sub.add_argument("--subclass")
    sub.add_argument("--per-group", type=int, default=4, help="new leaves per group")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--taxonomy", type=Path, metavar="TOML", help="your own additions so far")
    sub.add_argument("--out", type=Path, required=True, help="TOML to write")

    sub = command("prompts", _prompts, "write prompts, from a grammar or by an LLM over the category tree")
    engine = sub.add_mutually_exclusive_group(required=True)
    engine.add_argument("--grammar", type=Path, help="grammar TOML; no model needed")
    engine.add_argument("--server", help="base URL of an OpenAI-compatible server; key from OPENAI_API_KEY")
    sub.add_argument("--model", help="the server's model")
    sub.add_argument("--taxonomy", type=Path, metavar="TOML", help="merge your own tree onto the shipped one")
    sub.add_argument("--kind", choices=["simple", "detailed", "mixed"], default="mixed")
    sub.add_argument("--count", type=int, required=True, help="number of distinct prompts")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", type=Path, required=True, help="Parquet file to write")

    sub = command("filter", _filter, "judge prompts; dropped ones stay in the file with their reason")
    sub.add_argument("prompts", type=Path, help=".parquet, .jsonl, .csv or .txt")
    sub.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    sub.add_argument(
        "--rules",
        choices=["lenient", "paper"],
        default="lenient",
        help="paper: 200-350 characters, full sentences",
    )
    sub.add_argument("--min-characters", type=int)
    sub.add_argument("--max-characters", type=int)
    sub.add_argument("--unsafe-score", type=float)
    sub.add_argument("--near-duplicates", action="store_true", default=None)
    sub.add_argument(
        "--audit", metavar="URL", help="also ask an OpenAI-compatible server's --model (Fig. 11)"
    )
    sub.add_argument("--model", help="the auditing server's model")
    sub.add_argument("--disable", action="append", default=[], metavar="REASON", help="leave a rule out")

    sub = command("synthesize", _synthesize, "make images of the kept prompts; run it again to continue")
    sub.add_argument("prompts", type=Path)
    sub.add_argument(
        "--model", required=True, help="diffusers directory, or id in the local Hugging Face cache"
    )
    sub.add_argument("--out", type=Path, required=True, help="corpus directory")
    sub.add_argument("--seeds", type=int, default=2, help="images per prompt")
    sub.add_argument("--width", type=int, default=1024, help="px")
    sub.add_argument("--height", type=int, help="px; default: the width")
    sub.add_argument("--steps", type=int, help="the pipeline's num_inference_steps")
    sub.add_argument("--guidance", type=float, help="the pipeline's guidance_scale")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other pipeline argument"
    )
    sub.add_argument("--batch-size", type=int, default=8)
    sub.add_argument("--rows-per-shard", type=int, default=64)
    sub.add_argument("--workers", type=int, help="0: in this process")
    sub.add_argument("--threads", type=int, default=1, help="per worker")
    sub.add_argument("--dtype", default="auto")
    sub.add_argument("--ray-address", help="a running Ray cluster")
    sub.add_argument("--dry-run", action="store_true", help="say what would be made; write nothing")

    sub = command("verify", _verify, "re-read every byte of a corpus against its manifest")
    sub.add_argument("corpus", type=Path)
    sub.add_argument("--decode", action="store_true", help="also decode every image")

    sub = command("stats", _stats, "counts over a corpus directory or a prompt file")
    sub.add_argument("path", type=Path)
    sub.add_argument("--contact-sheet", type=Path, metavar="PNG", help="also draw a sample of the images")

    sub = command("export", _export, "corpus -> image folder with metadata")
    sub.add_argument("corpus", type=Path)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--metadata", choices=["jsonl", "csv"], default="jsonl")

    sub = command("import", _import, "image folder with metadata -> corpus")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--out", type=Path, required=True)
    return parser


def _assignment(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise DataError(f"--set {text!r}: wanted NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _readable(result: dict[str, Any]) -> str:
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name or '(none)':<24} {count}" for name, count in value.items())]
        elif isinstance(value, list):
            lines += [f"{key}:", *(f"  {item}" for item in value)]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)
