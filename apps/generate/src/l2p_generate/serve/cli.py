"""`l2p-generate serve --model RUN`: a web page to try a model."""

import argparse
import errno
import ipaddress
import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from l2p_generate.cli import Parser, add_model_options, announce_import, positive
from l2p_generate.errors import GenerateError

FIRST_PORT = 7860


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags after `serve`."""
    parser = Parser(
        prog="l2p-generate serve",
        description="A web page to try an L2P model, beside its source if it is at hand.",
    )
    add = parser.add_argument
    add_model_options(parser)
    add("--source", type=Path, metavar="DIR", help="the latent model to compare with; default: the run's own")
    add("--no-source", action="store_true", help="do not load the source")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=int, help="default: the first free one from 7860")
    add(
        "--auth-file",
        type=Path,
        metavar="FILE",
        help="lines of user:password; required when --host is not a loopback address",
    )
    add("--output", type=Path, metavar="DIR", help="keep the pictures here; default: thrown away at the end")
    add("--max-images", type=positive, default=4, metavar="N", help="per request (default 4)")
    add("--max-steps", type=positive, default=100, metavar="N", help="per image (default 100)")
    add("--max-side", type=positive, default=2048, metavar="PX", help="of an image (default 2048)")
    add("--queue", type=positive, default=16, metavar="N", help="requests that may wait (default 16)")
    add("--open", action="store_true", help="open a browser")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Serves until interrupted."""
    auth = read_auth(options.auth_file)
    if not is_loopback(options.host) and not auth:
        raise GenerateError(
            f"--host {options.host} is open to others; add --auth-file with lines of user:password,"
            " or listen on 127.0.0.1"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError:
        raise GenerateError('the web page needs Gradio: pip install "l2p-generate[serve]"') from None
    from l2p_generate.serve.page import build_page, make_app
    from l2p_generate.serve.studio import Limits, load_studio

    limits = Limits(images=options.max_images, steps=options.max_steps, side=options.max_side)
    with tempfile.TemporaryDirectory(prefix="l2p-generate-") as scratch:
        studio = load_studio(options, Path(options.output or scratch).absolute(), limits, announce_import)
        app = make_app(build_page(studio), studio, auth=auth, queue=options.queue)
        with listen(options.host, options.port) as listener:
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(url, flush=True)
            print("Ctrl-C ends it", file=sys.stderr)
            if options.open:
                webbrowser.open(url)
            settings = uvicorn.Config(
                app, log_level="error", timeout_graceful_shutdown=2
            )  # open pages hold on
            uvicorn.Server(settings).run(sockets=[listener])
    return 0


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket on the port, by default on the first free one from 7860.

    Raises:
        GenerateError: the port is taken, or the address is not this machine's.
    """
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100)
    for number in ports:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno != errno.EADDRINUSE:
                break
    raise GenerateError(f"cannot listen on {host}, port {port or f'{FIRST_PORT} and following'}: {reason}")


def read_auth(path: Path | None) -> list[tuple[str, str]]:
    """Users and passwords from a file, never from the command line, where other users could read them."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise GenerateError(f"cannot read --auth-file {path}: {error}") from None
    pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
    if not pairs or any(not user or not password for user, _, password in pairs):
        raise GenerateError(f"--auth-file {path} must hold lines of user:password")
    return [(user, password) for user, _, password in pairs]


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
