"""The endpoints as an application with its queue, and as a server of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from l2p_arch.sampling.settings import Sampling

from l2p_serve.api.batching import BatchQueue
from l2p_serve.door.guard import Guard, answered_names, is_loopback
from l2p_serve.door.listening import listen, serve_until_interrupted
from l2p_serve.door.scratch import scratch_folder
from l2p_serve.errors import ServeError
from l2p_serve.limits import Limits
from l2p_serve.painter import Paints

if TYPE_CHECKING:
    from fastapi import FastAPI


@contextmanager
def api_application(
    painter: Paints,
    *,
    defaults: Sampling,
    folder: Path,
    keep: bool = False,
    host: str = "127.0.0.1",
    allowed: Iterable[str] = (),
    tokens: Sequence[str] = (),
    limits: Limits | None = None,
    waiting: int = 16,
    batch: int = 8,
) -> Iterator[FastAPI]:
    """Yield the endpoints over a painter, behind the guard; the queue ends with the block.

    Args:
        defaults: what a request that names no size, steps or guidance is painted with.
        folder: where pictures that are asked for as addresses lie.
        keep: they stay there; else they go after an hour.
        host: where the server will listen, which decides the names that it answers to.
        allowed: further names, such as that of a reverse proxy.
        tokens: bearer tokens; without one everybody who can connect may ask.
        waiting: requests that may wait.
        batch: images at once, at most.

    Raises:
        ServeError: the extra `api` is not installed.
    """
    try:
        from l2p_serve.api.endpoints import Api, error_body, make_api
    except ImportError:
        raise ServeError('the endpoints need FastAPI: pip install "l2p-serve[api]"') from None
    queue = BatchQueue(painter, waiting=waiting, batch=batch)
    api = Api(
        painter=painter,
        queue=queue,
        defaults=defaults,
        limits=limits or Limits(),
        folder=folder,
        keep=keep,
        tokens=tokens,
    )
    app, allowed = make_api(api), tuple(allowed)
    app.add_middleware(Guard, names=answered_names(host, allowed), allowed=allowed, refuse=error_body)
    try:
        yield app
    finally:
        queue.stop()


def serve_api(
    painter: Paints,
    *,
    defaults: Sampling,
    host: str = "127.0.0.1",
    port: int | None = None,
    tokens: Sequence[str] = (),
    limits: Limits | None = None,
    waiting: int = 16,
    batch: int = 8,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a painter until interrupted; what `api_application` takes means the same here.

    Args:
        port: by default the first free one from 7860.
        ready: called with the address when it answers there.

    Raises:
        ServeError: the address is open to others and there is no token, or it cannot be listened at.
    """
    if not is_loopback(host) and not tokens:
        raise ServeError(f"host {host} is open to others; give tokens, or listen on 127.0.0.1")
    with (
        scratch_folder() as folder,
        listen(host, port) as listener,
        api_application(
            painter,
            defaults=defaults,
            folder=folder,
            host=host,
            tokens=tokens,
            limits=limits,
            waiting=waiting,
            batch=batch,
        ) as app,
    ):
        serve_until_interrupted(app, listener, ready)
