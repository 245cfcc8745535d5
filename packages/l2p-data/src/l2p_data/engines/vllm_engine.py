"""A chat engine: vLLM offline, one replica per Ray actor; answers bound to a JSON schema.

A replica takes `tensor_parallel` GPUs of one machine (vLLM splits the model over them) and there are as many
replicas as the cluster's GPUs hold, or as asked for. The replicas share a queue of batches. A replica that
dies is started again, and its batches go back to the queue; a batch that keeps killing replicas, or a message
that vLLM refuses, becomes answers that say so.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from l2p_run.chat import NoAnswer, answer_of
from l2p_run.errors import raised_as
from l2p_run.settings import check_settings, setting

from l2p_data.cluster import RayShare, ray_session, share_of_cluster
from l2p_data.corpus.files import one_line
from l2p_data.engines.chat import Message, fault
from l2p_data.engines.replicas import Replicas, end
from l2p_data.errors import DataError
from l2p_data.models import local_directory

# Blank space is legal between the parts of a JSON object, and some models write it up to max_tokens. vLLM
# takes the switch with a backend that is named.
_COMPACT = {"backend": "xgrammar", "disable_any_whitespace": True}


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """Which model, on how much of which cluster."""

    model: str | Path  # a transformers directory, or the id of one in the local Hugging Face cache
    tensor_parallel: int = setting(1, ge=1, le=1024)  # GPUs (on a CPU: processes) per replica, on one machine
    # None: as many as the cluster's GPUs hold; without GPUs one
    replicas: int | None = setting(None, ge=1, le=65_536)
    threads_per_replica: int = setting(1, ge=1, le=65_536)  # logical CPUs of each
    max_tokens: int = setting(512, ge=1, le=1_000_000)  # a longer answer counts as cut off
    max_model_len: int = setting(4096, ge=1, le=100_000_000)  # tokens of message and answer together
    dtype: str = "auto"
    messages_per_call: int = setting(256, ge=1, le=1_000_000)  # a replica's unit of work
    attempts: int = setting(3, ge=1, le=1000)  # of one batch, before its messages are given up
    # s that a lost replica is waited for: a node may have to be found first
    patience: float = setting(1800.0, ge=0, le=1e7)
    replica_resources: Mapping[str, float] = setting(dict, ge=0)  # custom ones of the Ray cluster
    ray_address: str | None = None  # a running cluster; None: this machine
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)  # anything else that vllm.LLM takes

    def __post_init__(self) -> None:
        raised_as(DataError)(check_settings)(self)
        if self.max_model_len <= self.max_tokens:
            raise DataError(
                f"max_model_len {self.max_model_len} leaves no room for a message beside max_tokens "
                f"{self.max_tokens}; raise the one or lower the other"
            )


class VLLMEngine:
    """A `ChatEngine` on Ray actors. They start with the first question and stay until `close`.

    Use it as a context manager, or let the process end: Ray goes with it.
    """

    def __init__(self, settings: VLLMSettings) -> None:
        self.settings = settings
        self._model = local_directory(settings.model, "config.json", "a transformers language model")
        if find_spec("vllm") is None:
            raise DataError("vLLM is not installed; install l2p-data[vllm], or use a server that runs it")
        self._stack = ExitStack()
        self._replicas: list[Any] = []

    @property
    def name(self) -> str:
        return self._model.name if Path(self.settings.model).is_dir() else str(self.settings.model)

    def __enter__(self) -> "VLLMEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the replicas, and Ray if it was started for them."""
        self._replicas = []
        self._stack.close()

    def ask(
        self, messages: Sequence[Message], schema: Mapping[str, Any], temperature: float
    ) -> Iterator[tuple[int, str]]:
        """Yield answers as batches of them get done.

        Raises:
            DataError: vLLM cannot load the model, or a lost replica did not come back in time.
        """
        import ray
        from ray.exceptions import RayError

        size = self.settings.messages_per_call
        chunks = [range(start, min(start + size, len(messages))) for start in range(0, len(messages), size)]
        losses: Counter[range] = Counter()
        replicas = Replicas(self._start(), self.settings.patience)
        asked: dict[Any, tuple[Any, range | None]] = {}  # None: whether the replica is there

        def submit(replica: Any) -> None:
            if chunks:
                chunk = chunks.pop(0)
                batch = [messages[index] for index in chunk]
                asked[replica.answer.remote(batch, json.dumps(schema), temperature)] = (replica, chunk)

        for replica in replicas.all * 2:  # a second batch waits at each replica, so that none idles
            submit(replica)
        while chunks or any(chunk for _, chunk in asked.values()):
            (done,), _ = ray.wait(list(asked), num_returns=1)
            replica, chunk = asked.pop(done)
            try:
                answers = ray.get(done)
            except RayError as error:
                why = end(replica, error)
                if chunk is not None:
                    losses[chunk] += 1
                    if losses[chunk] < self.settings.attempts:
                        chunks.insert(0, chunk)
                    else:
                        cause = f"replicas died {losses[chunk]} times over this batch: {why}"
                        yield from ((index, fault(cause, may_pass=True)) for index in chunk)
                replicas.lost(replica)
                asked[replica.fault.remote()] = (replica, None)
                for other in replicas.present[:1]:  # it need not wait
                    submit(other)
                continue
            if chunk is None and answers:
                raise DataError(f"vLLM can no longer run {self.settings.model}: {answers}")
            replicas.there(replica)
            submit(replica)
            if chunk is not None:
                yield from zip(chunk, answers, strict=True)

    def _start(self) -> list[Any]:
        """Return the replicas; the first call starts them and waits until each has loaded its model."""
        if self._replicas:
            return self._replicas
        settings = self.settings
        share = RayShare(
            workers=settings.replicas,
            threads_per_worker=settings.threads_per_replica,
            resources=settings.replica_resources,
            address=settings.ray_address,
        )
        ray = self._stack.enter_context(ray_session(share))
        resources = ray.cluster_resources()
        gpus = float(settings.tensor_parallel) if resources.get("GPU", 0) >= 1 else 0.0
        if not gpus and settings.replicas is None:
            resources = {**resources, "CPU": settings.threads_per_replica}
        count, gpus = share_of_cluster(replace(share, gpus_per_worker=gpus), resources)
        # Ray's own retries (max_task_retries) would be spent within a second, on a node that is not back yet
        actor = ray.remote(
            num_cpus=settings.threads_per_replica,
            num_gpus=gpus,
            resources=dict(settings.replica_resources) or None,
            max_restarts=-1,
        )(_Replica)
        replicas = [actor.remote(str(self._model), settings, bool(gpus)) for _ in range(count)]
        faults = ray.get([replica.fault.remote() for replica in replicas])
        if cause := next(filter(None, faults), None):
            self.close()
            raise DataError(f"vLLM cannot run {settings.model}: {cause}")
        self._replicas = replicas
        return replicas


class _Replica:
    """One vLLM in one Ray actor. It raises only if its vLLM is broken."""

    def __init__(self, model: str, settings: VLLMSettings, on_gpu: bool) -> None:
        self.settings = settings
        self.broken: str | None = None
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if settings.tensor_parallel == 1:  # the engine in this process: it dies with its actor
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if not on_gpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else replicas share one core
        try:
            from vllm import LLM

            parallel = settings.tensor_parallel
            # On a CPU vLLM 0.32 fails on a seeded answer whose message it reads in two parts.
            whole = {} if on_gpu else {"enable_chunked_prefill": False}
            self.llm = LLM(
                model=model,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                tensor_parallel_size=parallel,
                # Ray chose this actor's GPUs; vLLM's own processes split them
                distributed_executor_backend="mp" if parallel > 1 else None,
                **{"structured_outputs_config": _COMPACT, **whole, **settings.engine_kwargs},
            )
        except Exception as error:
            self.broken = one_line(error)

    def fault(self) -> str | None:
        """Return why this replica cannot work, if it cannot."""
        return self.broken

    def pid(self) -> int:
        """Return the number of the actor's process."""
        return os.getpid()

    def answer(self, messages: Sequence[Message], schema: str, temperature: float) -> list[str]:
        """Return one answer per message. If vLLM refuses the batch, each message is tried alone.

        An engine that died takes its actor along, so that Ray starts both anew and the batch is asked again:
        it would answer every message of every batch with the same fault. One that failed in the middle of
        the batch raises: it would wait for what is left of it for ever.
        """
        try:
            return self._chat(messages, schema, temperature)
        except Exception as error:
            if is_dead(error):
                os._exit(1)
            if self.llm.llm_engine.has_unfinished_requests():  # a refusal leaves none
                raise
            if len(messages) == 1:
                return [fault(one_line(error))]
            return [self.answer([message], schema, temperature)[0] for message in messages]

    def _chat(self, messages: Sequence[Message], schema: str, temperature: float) -> list[str]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = [
            SamplingParams(
                temperature=temperature,
                max_tokens=self.settings.max_tokens,
                seed=seed,
                structured_outputs=StructuredOutputsParams(json=schema),
            )
            for _, seed in messages
        ]
        chats = [[{"role": "user", "content": text}] for text, _ in messages]
        outputs = self.llm.chat(chats, sampling, use_tqdm=False)
        return [_text_of(output.outputs[0]) for output in outputs]


def is_dead(error: BaseException | None) -> bool:
    """Return whether an error says that vLLM's engine is gone, and not that it refused a message."""
    while error is not None:
        if "dead" in type(error).__name__.lower() or "engine core" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _text_of(output: Any) -> str:
    try:
        return answer_of(str(output.text), cut=output.finish_reason == "length")
    except NoAnswer as error:
        return fault(str(error))
