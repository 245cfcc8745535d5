"""Which chat engine: a server by its address, or vLLM by a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_data.engines.chat import ChatEngine
from l2p_data.errors import DataError, checks


@checks
@contextmanager
def open_engine(
    *,
    server: str | None = None,
    model: str | None = None,
    vllm: str | Path | None = None,
    api_key: str | None = None,
    max_tokens: int = 512,
    tensor_parallel: int = 1,
    replicas: int | None = None,
    ray_address: str | None = None,
    replica_resources: Mapping[str, float] | None = None,
    engine_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[ChatEngine]:
    """Yield a chat engine; what it started is stopped at the end.

    Args:
        server: base URL of an OpenAI-compatible server; `model` is the name of its model.
        model: see `server`.
        vllm: instead, a transformers directory (or an id in the local cache) for vLLM on Ray.
        api_key: of the server.
        max_tokens: of an answer; a longer one counts as cut off.
        tensor_parallel: of vLLM, GPUs per replica.
        replicas: of vLLM; None: as many as the GPUs hold.
        ray_address: of vLLM; None: this machine.
        replica_resources: of vLLM, custom resources of the Ray cluster that each replica takes.
        engine_kwargs: of vLLM, anything else that `vllm.LLM` takes.

    Raises:
        DataError: neither or both are named, or the model is missing.
    """
    if (server is None) == (vllm is None):
        raise DataError("name one engine: a server's address, or a model for vLLM")
    if server is not None:
        from l2p_data.engines.openai import OpenAIEngine, OpenAIServer

        if not model:
            raise DataError("a server needs --model, the name under which it offers its model")
        yield OpenAIEngine(OpenAIServer(base_url=server, model=model, api_key=api_key, max_tokens=max_tokens))
        return
    from l2p_data.engines.vllm_engine import VLLMEngine, VLLMSettings

    assert vllm is not None
    settings = VLLMSettings(
        model=vllm,
        max_tokens=max_tokens,
        tensor_parallel=tensor_parallel,
        replicas=replicas,
        ray_address=ray_address,
        replica_resources=replica_resources or {},
        **_known(engine_kwargs or {}),
    )
    with VLLMEngine(settings) as engine:
        yield engine


def _known(engine_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `vllm.LLM`; those that `VLLMSettings` has itself go there."""
    own = {name: engine_kwargs[name] for name in ("max_model_len", "dtype") if name in engine_kwargs}
    return {**own, "engine_kwargs": {key: value for key, value in engine_kwargs.items() if key not in own}}
