"""Areas `transfer`, `training` and `ablation`: configs, and `--dry-run` against what a run says first."""

import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import strategies as st

from fuzzing.case import Case, encoded
from fuzzing.values import changed, damaged_text, numbers, texts, toml_values

ROOT = Path(__file__).parents[2]


def transfer(seeds: Path) -> st.SearchStrategy[Case]:
    """Configs of l2p-transfer."""
    from l2p_transfer.config import TABLES, load_config

    kinds = {name: dict(typing.get_type_hints(kind)) for name, kind in TABLES.items()}
    whole = load_config(seeds / "tiny.toml").to_tables()
    whole["run"]["output"], whole["source"]["model"] = "run", "source"
    whole["prompts"]["grammar"], whole["evaluate"]["metadata"] = "grammar.toml", "metadata.jsonl"
    copies = {name: name for name in ("source", "grammar.toml", "metadata.jsonl")}
    return st.one_of(
        _configs("transfer", "l2p-transfer", whole, kinds, copies, "c.toml"),
        _options("transfer", "l2p-transfer", whole, kinds, copies),
    )


def training(seeds: Path) -> st.SearchStrategy[Case]:
    """Configs of the trainer; what a dry run accepts is trained, for two steps."""
    from l2p_train.config import TrainConfig

    kinds = {"train": dict(typing.get_type_hints(TrainConfig))}
    whole: dict[str, Any] = {
        "train": {
            **{"model": "model", "corpus": "corpus", "output": "out", "steps": 2, "batch_size": 2},
            **{"trainable": 1, "zero_stage": 0, "precision": "fp32", "sample_steps": 1, "sample_count": 1},
            **{"log_every": 1, "sample_every": 0, "checkpoint_every": 0, "loader_workers": 0},
            **{"tensorboard": False, "max_sequence_length": 32, "learning_rate": 1e-3},
        }
    }
    copies = {"model": "run/model", "corpus": "corpus"}
    return _configs("training", "l2p-train", whole, kinds, copies, "c.toml", quick=True)


def ablation(seeds: Path) -> st.SearchStrategy[Case]:
    """Configs of l2p-ablate."""
    from l2p_ablate.config import load_config
    from l2p_run.settings import to_table

    whole = to_table(load_config(ROOT / "configs/ablations/head.toml"))
    whole["source"]["model"], whole["evaluate"]["metadata"] = "source", "metadata.jsonl"
    for table in whole["data"].values():
        table["grammar"] = "grammar.toml"
    copies = {name: name for name in ("source", "grammar.toml", "metadata.jsonl")}
    return _configs("ablation", "l2p-ablate", whole, {}, copies, "c.toml")


def _configs(
    area: str,
    program: str,
    whole: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    copies: Mapping[str, str],
    name: str,
    *,
    quick: bool = False,
) -> st.SearchStrategy[Case]:
    """Files: one to three values of a config that says everything, or damage to its text."""
    text = tomli_w.dumps(dict(whole)).encode()

    def case(content: bytes) -> Case:
        return Case(
            area=area,
            command=(program, name, "--dry-run"),
            twin=(f"begin:{program}", name),
            copies=dict(copies),
            files={name: encoded(content)},
        )

    anywhere = changed(dict(whole), toml_values()) if not quick else changed(dict(whole), numbers(quick=True))
    aimed = _aimed(whole, kinds, quick=quick) if kinds else anywhere
    return st.one_of(
        aimed.map(_written(text)).map(case),
        anywhere.map(_written(text)).map(case),
        damaged_text(text).map(case),
    )


def _written(otherwise: bytes) -> Callable[[Any], bytes]:
    def write(tables: Any) -> bytes:
        try:
            return tomli_w.dumps(tables).encode()
        except (TypeError, ValueError, AttributeError, RecursionError):  # no TOML says this
            return otherwise

    return write


@st.composite
def _aimed(
    draw: Any, whole: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]], *, quick: bool
) -> dict[str, Any]:
    """One to three keys with values that are nearly of their kind."""
    made = {name: dict(table) for name, table in whole.items() if isinstance(table, Mapping)}
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        table = draw(st.sampled_from(sorted(kinds)))
        key = draw(st.sampled_from(sorted(kinds[table])))
        made.setdefault(table, {})[key] = draw(near(kinds[table][key], quick=quick))
    return made


def near(hint: Any, *, quick: bool = False) -> st.SearchStrategy[Any]:
    """Values of a type, and now and then of another."""
    options = typing.get_args(hint) or (hint,)
    found: list[st.SearchStrategy[Any]] = []
    for option in options:
        if option in (int, float):
            small = st.integers(1, 4) if option is int else st.floats(0, 1)
            found += [small, small, numbers(quick=quick)]
        elif option is bool:
            found.append(st.booleans())
        elif option in (str, Path):
            found.append(texts().filter(lambda text: text.isprintable()))
        elif isinstance(option, str):  # of a Literal
            found.append(st.just(option))
        elif typing.get_origin(option) is not None:
            found.append(near(option, quick=quick))
    if typing.get_origin(hint) in (tuple, list):
        return st.lists(st.one_of(*found), max_size=4) if found else st.just([])
    return st.one_of(*found * 3, st.booleans(), numbers(quick=quick)) if found else toml_values()


@st.composite
def _options(
    draw: Any,
    area: str,
    program: str,
    whole: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    copies: Mapping[str, str],
) -> Case:
    """`--set` on the command line, with values that are TOML, nearly TOML, or neither."""
    table = draw(st.sampled_from(sorted(kinds)))
    key = draw(st.sampled_from(sorted(kinds[table])))
    value = draw(st.one_of(near(kinds[table][key]), texts()))
    text = str(value).replace("\0", "").encode("utf-8", "ignore").decode()  # no command line holds these
    sets = ["--set", f"{table}.{key}={text}"]
    if draw(st.integers(0, 4)) == 0:
        sets = ["--set", draw(texts()).replace("\0", "").encode("utf-8", "ignore").decode()]
    return Case(
        area=area,
        command=(program, "c.toml", "--dry-run", *sets),
        twin=(f"begin:{program}", "c.toml", *sets),
        copies=dict(copies),
        files={"c.toml": encoded(tomli_w.dumps(dict(whole)).encode())},
    )
