"""The commands of `l2p-data` as functions of the same names: files in, files out, a summary returned.

With `dry_run` a function checks its input, says what it would do, and writes nothing.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l2p_data.corpus.manifest import Manifest, load_manifest
from l2p_data.engines.llm import PromptRequest, TextGenerator
from l2p_data.errors import DataError
from l2p_data.filters.audit import Judge, audit_prompts
from l2p_data.filters.filtering import FilterRules, filter_prompts, kept, reasons
from l2p_data.preview import contact_sheet as draw_contact_sheet
from l2p_data.preview import corpus_stats, prompt_stats
from l2p_data.prompts.expansion import Expander, expand_taxonomy
from l2p_data.prompts.generation import apportion, check_count, generate_prompts
from l2p_data.prompts.grammar import GrammarGenerator
from l2p_data.prompts.records import read_prompts, write_prompts
from l2p_data.prompts.taxonomy import load_taxonomy

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""
Summary = dict[str, Any]
"""What a command prints: plain values, lists and tables."""


def taxonomy(
    *,
    superclass: str | None = None,
    subclass: str | None = None,
    text: str = "",
    extend: str | Path | None = None,
) -> Summary:
    """Return the leaves of the category tree, or of a part of it."""
    found = load_taxonomy(extend).find(superclass=superclass, subclass=subclass, text=text)
    leaves = [
        " > ".join([leaf.superclass, leaf.subclass, leaf.group, leaf.category]) for leaf in found.categories
    ]
    if not leaves:
        raise DataError("no category of the tree is there; look for its name in `l2p-data taxonomy`")
    return {"categories": len(leaves), "leaves": leaves}


def expand(
    engine: Expander,
    out: str | Path,
    *,
    per_group: int = 4,
    superclass: str | None = None,
    subclass: str | None = None,
    extend: str | Path | None = None,
    seed: int = 0,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Summary:
    """Propose new leaves by an LLM, as a TOML to review; the summary is the diff."""
    tree = load_taxonomy(extend).find(superclass=superclass, subclass=subclass)
    groups = sum(len(names) for branch in tree.tree().values() for names in branch.values())
    if dry_run:
        return {"out": str(out), "groups": groups, "wanted": groups * per_group, "written": 0}
    expansion = expand_taxonomy(tree, engine, per_group, seed=seed, on_progress=on_progress)
    expansion.save(Path(out))
    added = [(leaf.superclass, leaf.subclass, leaf.group, leaf.category) for leaf in expansion.added]
    return {
        "out": str(out),
        "added": [f"+ {' > '.join(path)}" for path in added],
        "rejected": [f"{name}: {cause}" for name, cause in expansion.rejected],
    }


def prompts(
    engine: TextGenerator,
    count: int,
    out: str | Path,
    *,
    extend: str | Path | None = None,
    kind: str = "mixed",
    seed: int = 0,
    dry_run: bool = False,
) -> Summary:
    """Write prompts over the engine's own categories (a grammar's) or the category tree, as Parquet."""
    leaves = getattr(engine, "categories", None) or load_taxonomy(extend).categories
    if dry_run:
        check_count(count)
        shares: dict[str, int] = {}
        for leaf, share in zip(leaves, apportion(count, [leaf.weight for leaf in leaves]), strict=True):
            shares[leaf.superclass] = shares.get(leaf.superclass, 0) + share
        plan = {"out": str(out), "engine": engine.name, "prompts": count, "superclass": shares, "written": 0}
        request = PromptRequest(category=leaves[0], seed=seed)
        if isinstance(engine, GrammarGenerator):  # it is sent no message
            return {**plan, "example": json.loads(engine.generate([request])[0])["prompt"]}
        return {**plan, "first_message": _first_message(request)}
    made = generate_prompts(engine, count, categories=leaves, seed=seed, kind=kind)
    write_prompts(made, out)
    return {"out": str(out), **prompt_stats(made)}


def filter(
    prompts: str | Path,
    out: str | Path,
    *,
    rules: FilterRules | None = None,
    judge: Judge | None = None,
    dry_run: bool = False,
) -> Summary:
    """Judge prompts by rules, and by an LLM if one is given; all stay in the file, with their reasons."""
    judged = filter_prompts(read_prompts(prompts), rules)
    if judge is not None and not dry_run:
        judged = audit_prompts(judged, judge)
    if not dry_run:
        write_prompts(judged, out)
    keep = int((judged["status"] == "keep").sum())
    summary = {
        "out": str(out),
        "kept": keep,
        "dropped": judged.height - keep,
        "acceptance": round(keep / judged.height, 4),
        "reasons": reasons(judged),
    }
    return {**summary, "written": 0} if dry_run else summary


def synthesize(
    prompts: str | Path,
    config: Any,
    *,
    dry_run: bool = False,
    on_progress: Callable[[Any], None] | None = None,
) -> Summary:
    """Paint images of the kept prompts, by `synthesis.SynthesisConfig`."""
    from l2p_data.synthesis.synthesize import plan_shards, resolve_model
    from l2p_data.synthesis.synthesize import synthesize as run

    frame = read_prompts(prompts)
    if dry_run:
        shards = plan_shards(kept(frame), config)
        sizes: dict[str, int] = {}
        for row in (row for rows in shards for row in rows):
            size = f"{row['width']}x{row['height']}"
            sizes[size] = sizes.get(size, 0) + 1
        model = str(resolve_model(config.model))
        return {
            "model": model,
            "images": sum(sizes.values()),
            "size": sizes,
            "shards": len(shards),
            "written": 0,
        }
    manifest = run(frame, config, on_progress)
    return {
        "out": str(config.output),
        "rows": manifest.rows,
        "failed": len(manifest.failures),
        "reasons": manifest.reasons(),
        "failures": [f"{failure.id}: {failure.error}" for failure in manifest.failures],
        **_cut(manifest),
    }


def _cut(manifest: Manifest) -> Summary:
    """Return how many prompts were longer than the text encoder takes, and what the first of them lost."""
    if not manifest.cut_prompts:
        return {}
    return {"cut_prompts": len(manifest.cut_prompts), "cut_from": manifest.cut_prompts[0]}


def verify(
    corpus: str | Path,
    *,
    decode: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Summary:
    """Re-read every byte of a corpus against its manifest."""
    from l2p_data.corpus.dataset import verify as check

    if dry_run:
        manifest = load_manifest(corpus)
        size = sum(shard.bytes for shard in manifest.shards)
        return {"corpus": str(corpus), "shards": len(manifest.shards), "rows": manifest.rows, "bytes": size}
    return {"corpus": str(corpus), "ok": True, **check(corpus, decode=decode, on_progress=on_progress)}


def stats(
    path: str | Path,
    *,
    contact_sheet: str | Path | None = None,
    plot: str | Path | None = None,
    near_duplicates: bool = False,
    dry_run: bool = False,
) -> Summary:
    """Report numbers of a corpus or a prompt file (Fig. 2b, 2c), and pictures of them."""
    if Path(path).is_file():
        if contact_sheet is not None:
            raise DataError(f"{path} holds prompts; a contact sheet needs a corpus")
        summary: Summary = prompt_stats(read_prompts(path), near_duplicates=near_duplicates)
    else:
        summary = corpus_stats(path, near_duplicates=near_duplicates)
    if contact_sheet is not None and not dry_run:
        summary["contact_sheet"] = str(draw_contact_sheet(path, contact_sheet))
    if plot is not None and not dry_run:
        from l2p_data.corpus.plot import plot_stats

        summary["plot"] = str(plot_stats(summary, plot))
    return summary


def export(
    corpus: str | Path,
    out: str | Path,
    *,
    layout: str = "hub",
    metadata: str = "jsonl",
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Summary:
    """Write a corpus as a folder of images with their texts; see `folders.export_folder`."""
    from l2p_data.corpus.folders import export_folder

    if dry_run:
        return {"out": str(out), "images": load_manifest(corpus).rows, "written": 0}
    images = export_folder(corpus, out, layout=layout, metadata=metadata, on_progress=on_progress)
    return {"out": str(out), "images": images}


def import_(
    folder: str | Path,
    out: str | Path,
    *,
    caption: str | None = None,
    background: str = "white",
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Summary:
    """Import images with texts as a corpus; see `folders.import_folder`."""
    from l2p_data.corpus.folders import check_import, import_folder

    if dry_run:
        source = check_import(folder, caption=caption, background=background)
        left_out = {"left_out": list(source.left_out)} if source.left_out else {}
        return {"out": str(out), "rows": source.total, **source.columns, **left_out, "written": 0}
    manifest = import_folder(folder, out, caption=caption, background=background, on_progress=on_progress)
    failures = [f"{failure.id}: {failure.error}" for failure in manifest.failures]
    left_out = {name: value for name, value in manifest.settings.items() if name == "left_out"}
    return {
        "out": str(out),
        "rows": manifest.rows,
        "changed": dict(manifest.settings.get("changed", {})),
        **left_out,
        "failed": len(failures),
        "reasons": manifest.reasons(),
        "failures": failures,
    }


def _first_message(request: PromptRequest) -> str:
    from l2p_data.engines.template import generation_message

    return generation_message(request)


COMMANDS: Mapping[str, Callable[..., Summary]] = {
    "taxonomy": taxonomy,
    "expand": expand,
    "prompts": prompts,
    "filter": filter,
    "synthesize": synthesize,
    "verify": verify,
    "stats": stats,
    "export": export,
    "import": import_,
}
