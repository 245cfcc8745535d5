"""The engine that `[prompts]` names: a grammar, a file, a server, or vLLM on the run's Ray cluster."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p_run.places import shorten

from l2p_transfer.config import Config
from l2p_transfer.errors import TransferError
from l2p_transfer.paths import RunPaths

if TYPE_CHECKING:
    import polars

LLM_ENGINES = ("openai", "vllm")


@contextmanager
def open_generator(
    config: Config, paths: RunPaths, progress: Callable[[float, float, str], None]
) -> Iterator[Any]:
    """What writes prompts and, if it is an LLM, judges them. It is stopped at the end.

    Answers of an LLM are kept as they come in, in the run directory or at the run's address: a killed run
    asks for none twice.
    """
    section = config.prompts
    if section.engine == "grammar":
        from l2p_data.prompts.grammar import GrammarGenerator

        assert section.grammar is not None
        yield GrammarGenerator(section.grammar, seed=config.run.seed)
        return
    from l2p_data.engines.chat import ChatGenerator
    from l2p_data.engines.choice import open_engine

    with open_engine(
        server=section.server if section.engine == "openai" else None,
        model=section.model,
        vllm=section.llm if section.engine == "vllm" else None,
        api_key=os.environ.get("OPENAI_API_KEY"),
        tensor_parallel=section.tensor_parallel,
        replicas=section.replicas,
        ray_address=config.cluster.address or None,
        replica_resources=config.cluster.llm_resources,
        engine_kwargs=section.engine_kwargs,
    ) as engine:
        yield ChatGenerator(
            engine,
            subjects_per_message=section.subjects_per_message,
            journal=_journal(config, paths),
            on_progress=lambda done, total: progress(done, total, "answers"),
        )


def prompts_of_file(path: Path) -> "polars.DataFrame":
    """The prompts of a file. What a filter dropped before is left out; the run's own judges the rest again.

    Raises:
        DataError, TransferError: there is no such file, or no prompt in it.
    """
    import polars as pl
    from l2p_data.prompts.generation import read_prompts

    prompts = read_prompts(path)
    if "status" in prompts.columns:
        prompts = prompts.filter(pl.col("status").ne_missing("drop"))
    if prompts.is_empty():
        raise TransferError(
            f"every prompt of {shorten(path)} has been dropped by a filter; judge them again by other rules,"
            " or give the file that was judged"
        )
    return prompts


def _journal(config: Config, paths: RunPaths) -> Path | str:
    """Where answers are kept: where another machine would look for them."""
    return f"{config.run.storage}/prompts/journal" if config.run.storage else paths.prompts.parent / "journal"
