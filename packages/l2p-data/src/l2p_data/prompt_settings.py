"""One table of settings that says where prompts come from: a grammar, a file, a server, or vLLM.

`check` refuses settings that do not go together, `check_files` what is not there, `open_generator` opens the
engine and `make_prompts` writes the records.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from l2p_run.places import shorten
from l2p_run.settings import setting

from l2p_data.errors import DataError

if TYPE_CHECKING:
    import polars

NEEDED = {"grammar": ("grammar",), "file": ("file",), "openai": ("server", "model"), "vllm": ("llm",)}
"""Settings that an engine cannot do without."""
LLM_ENGINES = ("openai", "vllm")
Progress = Callable[[float, float, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Where prompts come from (sec. 3.2; the paper: 10k)."""

    engine: Literal["grammar", "file", "openai", "vllm"] = "grammar"
    grammar: Path | None = None  # for engine = "grammar": a grammar file
    file: Path | None = None  # for engine = "file": .jsonl, .txt, .csv or .parquet; dropped ones are left out
    server: str | None = None  # for engine = "openai": base URL; the key comes from OPENAI_API_KEY
    model: str | None = None  # for engine = "openai": the server's model
    llm: Path | None = None  # for engine = "vllm": a transformers directory of a language model
    tensor_parallel: int = setting(1, ge=1)  # for engine = "vllm": GPUs per replica
    replicas: int | None = setting(None, ge=1)  # for engine = "vllm"; None: as many as the GPUs hold
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for engine = "vllm": what vllm.LLM takes
    taxonomy: Path | None = None  # for an LLM: your own categories, merged onto the shipped tree
    kind: Literal["simple", "detailed", "mixed"] = "mixed"  # for an LLM: Fig. 10
    subjects_per_message: int = setting(1, ge=1)  # for an LLM
    audit: bool = False  # the LLM also judges what passed the rules (Fig. 11)
    count: int = setting(10_000, ge=1)  # prompts to write; with a file, the most to take

    def check(self, table: str = "prompts") -> None:
        """Raise `DataError` for an engine without what it needs, and for an audit without an LLM.

        Args:
            table: what the table is called, for errors.
        """
        for name in NEEDED[self.engine]:
            if getattr(self, name) is None:
                raise DataError(f'{table}.engine = "{self.engine}" needs {table}.{name}')
        if self.audit and self.engine not in LLM_ENGINES:
            raise DataError(f'{table}.audit needs an LLM; {table}.engine is "{self.engine}"')

    def check_files(self) -> None:
        """Raise `DataError` for a grammar, file, model or taxonomy that is not there or cannot be read."""
        from l2p_data.models import local_directory
        from l2p_data.prompts.grammar import load_grammar
        from l2p_data.prompts.taxonomy import load_taxonomy

        if self.engine == "grammar" and self.grammar:
            load_grammar(self.grammar)
        elif self.engine == "file" and self.file:
            prompts_of_file(self.file)
        elif self.engine == "vllm" and self.llm:
            local_directory(self.llm, "config.json", "a transformers language model")
        if self.taxonomy:
            load_taxonomy(self.taxonomy)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an LLM runs and where its answers are kept: it changes no prompt.

    Attributes:
        journal: file or address of the answers, which a killed run asks for once only.
        api_key: of a server.
        ray_address: of vLLM's cluster; None: this machine.
        replica_resources: custom resources of that cluster that each replica takes.
    """

    journal: Path | str
    api_key: str | None = None
    ray_address: str | None = None
    replica_resources: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def open_generator(settings: PromptSettings, place: Place, *, seed: int, progress: Progress) -> Iterator[Any]:
    """Yield what writes prompts and, if it is an LLM, judges them. It is stopped at the end."""
    if settings.engine == "grammar":
        from l2p_data.prompts.grammar import GrammarGenerator

        assert settings.grammar is not None
        yield GrammarGenerator(settings.grammar, seed=seed)
        return
    from l2p_data.engines.chat import ChatGenerator
    from l2p_data.engines.choice import open_engine

    with open_engine(
        server=settings.server if settings.engine == "openai" else None,
        model=settings.model,
        vllm=settings.llm if settings.engine == "vllm" else None,
        api_key=place.api_key,
        tensor_parallel=settings.tensor_parallel,
        replicas=settings.replicas,
        ray_address=place.ray_address,
        replica_resources=place.replica_resources,
        engine_kwargs=settings.engine_kwargs,
    ) as engine:
        yield ChatGenerator(
            engine,
            subjects_per_message=settings.subjects_per_message,
            journal=place.journal,
            on_progress=lambda done, total: progress(done, total, "answers"),
        )


def make_prompts(
    settings: PromptSettings, place: Place, *, seed: int, progress: Progress
) -> "polars.DataFrame":
    """Return records of `PROMPT_SCHEMA` (`l2p_data.prompts.records`) by the engine that the settings name."""
    from l2p_data.prompts.generation import generate_prompts
    from l2p_data.prompts.taxonomy import load_taxonomy

    if settings.engine == "file":
        assert settings.file is not None
        return prompts_of_file(settings.file).head(settings.count)
    leaves = load_taxonomy(settings.taxonomy).categories if settings.engine in LLM_ENGINES else None
    with open_generator(settings, place, seed=seed, progress=progress) as generator:
        return generate_prompts(generator, settings.count, categories=leaves, seed=seed, kind=settings.kind)


def prompts_of_file(path: Path) -> "polars.DataFrame":
    """Return the prompts of a file. What a filter dropped before is left out; the run's own judges the rest
    again.

    Raises:
        DataError: there is no such file, or no prompt in it.
    """
    import polars as pl

    from l2p_data.prompts.records import read_prompts

    prompts = read_prompts(path)
    if "status" in prompts.columns:
        prompts = prompts.filter(pl.col("status").ne_missing("drop"))
    if prompts.is_empty():
        raise DataError(
            f"every prompt of {shorten(path)} has been dropped by a filter; judge them again by other rules,"
            " or give the file that was judged"
        )
    return prompts
