"""`l2p-data`: the functions of `commands` on the command line. Results go to stdout, the rest to stderr."""

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2p_run.command import out, run_command
from l2p_run.progress import Counter

from l2p_data.arguments import build_parser
from l2p_data.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 ok, 2 usage or input, 130 and 143 interrupted."""
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    # Pillow warns of damaged files, which are listed as failures with their cause.
    warnings.filterwarnings("ignore", module="PIL")
    result = _RUN[options.command](options)
    out(json.dumps(result, ensure_ascii=False) if options.json else _readable(result))
    return 0


def _taxonomy(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    return commands.taxonomy(
        superclass=options.superclass, subclass=options.subclass, text=options.text, extend=options.extend
    )


def _expand(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    with _engine(options) as engine:
        return commands.expand(
            engine,
            options.out,
            per_group=options.per_group,
            superclass=options.superclass,
            subclass=options.subclass,
            extend=options.extend,
            seed=options.seed,
            dry_run=options.dry_run,
            on_progress=Counter("groups"),
        )


def _prompts(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    with _engine(options) as engine:
        return commands.prompts(
            engine,
            options.count,
            options.out,
            extend=options.extend,
            kind=options.kind,
            seed=options.seed,
            dry_run=options.dry_run,
        )


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[Any]:
    """Yield the engine that the options name; it is stopped at the end."""
    if getattr(options, "grammar", None) is not None:
        from l2p_data.prompts.grammar import GrammarGenerator

        yield GrammarGenerator(options.grammar, seed=options.seed)
        return
    from l2p_data.engines.chat import ChatGenerator
    from l2p_data.engines.choice import open_engine

    journal = None if options.dry_run else _journal(options)
    with open_engine(
        server=options.server,
        model=options.model,
        vllm=options.vllm,
        api_key=os.environ.get("OPENAI_API_KEY"),
        max_tokens=options.max_tokens,
        tensor_parallel=options.tensor_parallel,
        replicas=options.replicas,
        ray_address=options.ray_address,
        engine_kwargs=dict(_assignment(text) for text in options.vllm_set),
    ) as engine:
        yield ChatGenerator(
            engine,
            temperature=options.temperature,
            subjects_per_message=getattr(options, "subjects", 1),
            journal=journal,
            on_progress=Counter("answers"),
        )


def _journal(options: argparse.Namespace) -> str | Path:
    """Return where answers are kept until the result is whole, and after."""
    out = Path(options.out)
    return options.journal or out.with_name(f"{out.name}.journal")


def _filter(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands
    from l2p_data.filters.filtering import FilterRules

    changes = {
        name: getattr(options, name)
        for name in ("min_characters", "max_characters", "unsafe_score", "near_duplicates")
        if getattr(options, name) is not None
    }
    changes["disabled"] = tuple(options.disable)
    rules = FilterRules.paper(**changes) if options.rules == "paper" else FilterRules(**changes)
    arguments = {"rules": rules, "dry_run": options.dry_run}
    if not options.audit:
        return commands.filter(options.prompts, options.out, **arguments)
    with _engine(options) as judge:
        return commands.filter(options.prompts, options.out, judge=judge, **arguments)


def _synthesize(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands
    from l2p_data.synthesis.buckets import aspect_buckets, parse_size
    from l2p_data.synthesis.checks import CheckSettings
    from l2p_data.synthesis.config import SynthesisConfig
    from l2p_data.synthesis.synthesize import SynthesisProgress

    pipeline_kwargs: dict[str, Any] = dict(_assignment(text) for text in options.set)
    if options.steps is not None:
        pipeline_kwargs["num_inference_steps"] = options.steps
    if options.guidance is not None:
        pipeline_kwargs["guidance_scale"] = options.guidance
    buckets = [parse_size(text) for text in options.bucket]
    checks = CheckSettings(safety_model=options.safety_model, min_text_match=options.min_text_match)
    if options.unsafe_label:
        checks = replace(checks, unsafe_labels=tuple(options.unsafe_label))
    config = SynthesisConfig(
        model=options.model,
        output=options.out,
        seeds_per_prompt=options.seeds,
        width=options.width,
        height=options.height or options.width,
        buckets=aspect_buckets(options.width) if options.aspect_buckets else buckets,
        batch_size=options.batch_size,
        rows_per_shard=options.rows_per_shard,
        workers=options.workers,
        threads_per_worker=options.threads,
        gpus_per_worker=options.gpus_per_worker,
        dtype=options.dtype,
        cpu_offload=options.cpu_offload,
        image_format=options.image_format,
        min_entropy=options.min_entropy,
        checks=checks,
        ray_address=options.ray_address,
        pipeline_kwargs=pipeline_kwargs,
    )

    counter = Counter("images")

    def report(state: SynthesisProgress) -> None:
        counter(
            state.images, state.total, f"shards {state.shards}/{state.total_shards}, failed {state.failed}"
        )

    return commands.synthesize(options.prompts, config, dry_run=options.dry_run, on_progress=report)


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    return commands.verify(
        options.corpus, decode=options.decode, dry_run=options.dry_run, on_progress=Counter("shards")
    )


def _stats(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    return commands.stats(
        options.path,
        contact_sheet=options.contact_sheet,
        plot=options.plot,
        near_duplicates=options.near_duplicates,
        dry_run=options.dry_run,
    )


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    return commands.export(
        options.corpus,
        options.out,
        layout=options.layout,
        metadata=options.metadata,
        dry_run=options.dry_run,
        on_progress=Counter("images"),
    )


def _import(options: argparse.Namespace) -> dict[str, Any]:
    from l2p_data import commands

    return commands.import_(
        options.folder,
        options.out,
        caption=options.caption,
        background=options.background,
        dry_run=options.dry_run,
        on_progress=Counter("images"),
    )


_RUN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "taxonomy": _taxonomy,
    "expand": _expand,
    "prompts": _prompts,
    "filter": _filter,
    "synthesize": _synthesize,
    "verify": _verify,
    "stats": _stats,
    "export": _export,
    "import": _import,
}


def _assignment(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise DataError(f"{text[:200]!r} is no setting; wanted NAME=VALUE")
    try:
        found = json.loads(value)
    except RecursionError:
        raise DataError(f"the value of {name} is nested too deeply to be read") from None
    except ValueError:
        return name, value
    return name, found


def _readable(result: dict[str, Any]) -> str:
    lines = []
    for key, value in result.items():
        if value in ({}, []):
            continue
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name or '(none)':<24} {count}" for name, count in value.items())]
        elif isinstance(value, list):
            lines += [f"{key}:", *(f"  {item}" for item in value)]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)
