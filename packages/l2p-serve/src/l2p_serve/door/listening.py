"""The address of a server: a socket that listens, and the application behind it."""

import errno
import socket
from collections.abc import Callable
from typing import Any

from l2p_serve.errors import ServeError

FIRST_PORT = 7860


def listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket on the port, by default on the first free one from 7860.

    Raises:
        ServeError: the port is taken, or the address is not this machine's.
    """
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100)
    for each in ports:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, each, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno != errno.EADDRINUSE:
                break
    raise ServeError(f"cannot listen on {host}, port {port or f'{FIRST_PORT} and following'}: {reason}")


def address_of(listener: socket.socket) -> str:
    """Return the address to type into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve_until_interrupted(app: Any, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve an ASGI application.

    Args:
        ready: called with the address when it answers there.
    """
    import uvicorn

    ready(address_of(listener))
    settings = uvicorn.Config(
        app,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=2,  # open pages hold on
    )
    uvicorn.Server(settings).run(sockets=[listener])
