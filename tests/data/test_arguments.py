"""The package's functions, called from Python with what their types forbid: one line, before any work."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from l2p_data import (
    Category,
    DataError,
    FilterRules,
    GrammarGenerator,
    SynthesisConfig,
    filter_prompts,
    generate_prompts,
    load_manifest,
    load_taxonomy,
    prompt_records,
    read_corpus,
    read_prompts,
    synthesize,
    verify,
    write_prompts,
)
from l2p_data.corpus.folders import export_folder, import_folder
from l2p_data.filters.audit import audit_prompts
from l2p_data.prompts.expansion import expand_taxonomy
from l2p_data.prompts.generation import apportion
from l2p_data.synthesis.buckets import aspect_buckets, parse_size
from l2p_mini.paths import GRAMMAR

PROMPTS = prompt_records(["a red circle", "two blue squares"])
_MODEL: dict[str, Any] = {"model": "m", "output": "o"}
_LEAF: dict[str, Any] = {"superclass": "Nature", "subclass": "Objects", "category": "counting"}
_TREE = load_taxonomy()


def _generate(*given: Any, **named: Any) -> Any:
    return generate_prompts(GrammarGenerator(GRAMMAR), *given, **named)


def _painted(**changes: Any) -> SynthesisConfig:
    return SynthesisConfig(**{**_MODEL, **changes})


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        (prompt_records, ("a red circle",), "prompts is 'a red circle'; it must be a list of texts"),
        (prompt_records, (b"a",), "a list of texts"),
        (prompt_records, (None,), "a list of texts"),
        (prompt_records, ({"prompt": "a"},), "prompts is a dict"),
        (prompt_records, (["a", 2],), "prompts[1] is 2; it must be a text"),
        (prompt_records, ([["a"]],), "prompts[0]"),
        (prompt_records, (["a red circle \ud83d"],), "half of a character"),
        (filter_prompts, (["a"],), "prompts is a list; it must be a polars.DataFrame"),
        (filter_prompts, (PROMPTS.lazy(),), "polars.LazyFrame"),
        (
            filter_prompts,
            (PROMPTS, {"min_characters": 3}),
            "rules is a dict; it must be a l2p_data.FilterRules",
        ),
        (filter_prompts, (PROMPTS, FilterRules), "l2p_data.FilterRules"),
        (audit_prompts, (["a"], None), "polars.DataFrame"),
        (_generate, ("5",), "count is '5'; it must be a whole number"),
        (_generate, (5.5,), "count is 5.5"),
        (_generate, (True,), "count is True"),
        (generate_prompts, (GRAMMAR, 5), "generator is a pathlib"),
        (generate_prompts, (None, 5), "generator is None"),
        (GrammarGenerator, (None,), "path is None"),
        (GrammarGenerator, (GRAMMAR, "0"), "seed is '0'"),
        (load_taxonomy, (3,), "extension is 3"),
        (_TREE.sample, ("3",), "count is '3'"),
        (_TREE.sample, (3, 0.5), "seed is 0.5"),
        (expand_taxonomy, (list(_TREE.categories), None, 1), "l2p_data.Taxonomy"),
        (expand_taxonomy, (_TREE, None, 1.5), "per_group is 1.5"),
        (read_prompts, (None,), "path is None"),
        (write_prompts, (["a"], "x.parquet"), "polars.DataFrame"),
        (write_prompts, (PROMPTS, 3), "path is 3"),
        (write_prompts, (PROMPTS, "prompts.txt"), "give a name in .parquet"),
        (load_manifest, (None,), "corpus is None"),
        (read_corpus, (3,), "corpus is 3"),
        (verify, (None,), "corpus is None"),
        (synthesize, (["a"], _painted()), "polars.DataFrame"),
        (synthesize, (PROMPTS, _MODEL), "l2p_data.SynthesisConfig"),
        (synthesize, (PROMPTS, _painted(), 3), "on_progress is 3; it must be a function"),
        (import_folder, (None, "o"), "folder is None"),
        (export_folder, ("c", 3), "folder is 3"),
        (aspect_buckets, ("1024",), "side is '1024'"),
        (parse_size, (64,), "text is 64"),
        (apportion, (3, [0.0, 0.0]), "sum to 0"),
    ],
)
def test_an_argument_of_another_type_is_refused_in_one_line(
    call: Any, given: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        call(*given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (_generate, {"count": 5, "seed": "0"}),
        (_generate, {"count": 5, "seed": 1.5}),
        (_generate, {"count": 5, "seed": None}),
        (_generate, {"count": 5, "kind": ["mixed"]}),
        (_generate, {"count": 5, "categories": "Posters"}),
        (_generate, {"count": 5, "categories": ["Posters"]}),
        (_generate, {"count": 5, "categories": _TREE}),
        (_generate, {"count": 5, "categories": [Category(**_LEAF, weight=0)]}),
        (prompt_records, {"prompts": ["a"], "language": 3}),
        (Category, {**_LEAF, "category": 1}),
        (Category, {**_LEAF, "weight": -1}),
        (Category, {**_LEAF, "weight": math.nan}),
        (Category, {**_LEAF, "weight": "1"}),
        (FilterRules.paper, {"min_charcters": 3}),
        (FilterRules.paper, {"min_characters": "3"}),
        (export_folder, {"corpus": "c", "folder": "f", "layout": ["hub"]}),
        (import_folder, {"folder": "f", "corpus": "c", "background": 3}),
        (import_folder, {"folder": "f", "corpus": "c", "caption": 3}),
        (import_folder, {"folder": "f", "corpus": "c", "rows_per_shard": "9"}),
        (verify, {"corpus": "c", "decode": "no"}),
        (read_corpus, {"corpus": "c", "columns": "prompt"}),
        (_painted, {"buckets": (64, 64)}),
        (_painted, {"buckets": "64x64"}),
        (_painted, {"buckets": [(64, 64, 3)]}),
        (_painted, {"pipeline_kwargs": {"num_inference_steps": 2.5}}),
        (_painted, {"pipeline_kwargs": {"num_inference_steps": "9"}}),
        (_painted, {"pipeline_kwargs": {"guidance_scale": "high"}}),
        (_painted, {"pipeline_kwargs": {"prompt": "a"}}),
        (_painted, {"pipeline_kwargs": {"generator": 1}}),
        (_painted, {"pipeline_kwargs": {"return_dict": False}}),
        (_painted, {"pipeline_kwargs": {3: 1}}),
    ],
)
def test_and_so_is_one_that_is_given_by_name(call: Any, named: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        call(**named)
    assert "\n" not in str(caught.value)


def test_what_python_takes_for_the_same_passes(tmp_path: Path) -> None:
    """A tuple for a list, NumPy's numbers, a text for a path: the results are those of the plain types."""
    assert prompt_records(("a red circle", "two blue squares")).equals(PROMPTS)
    assert prompt_records(pl.Series(["a red circle", "two blue squares"]).to_list()).equals(PROMPTS)
    assert _generate(np.int64(5), seed=np.int32(1)).equals(_generate(5, seed=1))
    assert _generate(5, categories=GrammarGenerator(GRAMMAR).categories).equals(_generate(5))
    assert read_prompts(str(write_prompts(PROMPTS, str(tmp_path / "p.parquet")))).equals(PROMPTS)
    assert _painted(buckets=[[64, 128]]) == _painted(buckets=((64, 128),))
    assert _painted(pipeline_kwargs={"guidance_scale": 2}).pipeline_kwargs == {"guidance_scale": 2}
    assert filter_prompts(prompts=PROMPTS, rules=None).height == 2
