"""`l2p-generate serve`: a web page to try a model, or with --api OpenAI's image endpoints over it."""

import argparse
import errno
import os
import socket
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.command import Parser, number, out
from l2p_run.errors import UserError
from l2p_run.places import make_folder, read_text
from l2p_run.progress import say

from l2p_generate.errors import GenerateError
from l2p_generate.options import COUNT, SIDE, STEPS, add_model_options
from l2p_generate.serve.guard import Guard, answered_names, is_loopback
from l2p_generate.serve.scratch import scratch_folder

FIRST_PORT = 7860


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags after `serve`."""
    parser = Parser(
        prog="l2p-generate serve",
        description="A web page to try an L2P model, beside its source if it is at hand; or an API.",
    )
    add = parser.add_argument
    add_model_options(parser)
    add("--source", type=Path, metavar="DIR", help="the latent model to compare with; default: the run's own")
    add("--no-source", action="store_true", help="do not load the source")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=number(int, ge=0, le=65535), help="default: the first free one from 7860")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name to answer to, such as that of a reverse proxy; may be given several times",
    )
    add(
        "--auth-file",
        type=Path,
        metavar="FILE",
        help="lines of user:password; required when --host is not a loopback address",
    )
    add("--output", type=Path, metavar="DIR", help="keep the pictures here; default: thrown away at the end")
    add("--max-images", type=COUNT, default=4, metavar="N", help="per request (default 4)")
    add("--max-steps", type=STEPS, default=100, metavar="N", help="per image (default 100)")
    add("--max-side", type=SIDE, default=2048, metavar="PX", help="of an image (default 2048)")
    add("--queue", type=COUNT, default=16, metavar="N", help="requests that may wait (default 16)")
    add("--open", action="store_true", help="open a browser")
    add("--api", action="store_true", help="OpenAI's image endpoints instead of the page")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="with --api: a bearer token a line; required when --host is not a loopback address",
    )
    add("--max-batch", type=COUNT, default=8, metavar="N", help="with --api: images at once (default 8)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Serves until interrupted."""
    users, tokens = read_auth(options.auth_file), read_tokens(options.token_file)
    if (tokens and not options.api) or (users and options.api):
        raise GenerateError("--auth-file is for the page, and --token-file for --api; give the other one")
    if not is_loopback(options.host) and not (users or tokens):
        flag, holds = ("token", "a token each") if options.api else ("auth", "user:password")
        raise GenerateError(
            f"--host {options.host} is open to others; add --{flag}-file with lines of {holds},"
            " or listen on 127.0.0.1"
        )
    with scratch_folder() as scratch, listen(options.host, options.port) as listener:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            import fastapi  # noqa: F401
            import uvicorn
        except ImportError:
            raise GenerateError('the server needs Gradio: pip install "l2p-generate[serve]"') from None
        folder = (options.output or scratch / "pictures").absolute()
        make_folder(folder, "choose another --output")
        serving = _api(options, folder, tokens) if options.api else _page(options, folder, users)
        with serving as app:
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            out(f"{url}/v1" if options.api else url)
            say("Ctrl-C ends it")
            if options.open:
                webbrowser.open(url)
            settings = uvicorn.Config(
                app,
                log_level="error",
                server_header=False,
                timeout_graceful_shutdown=2,  # open pages hold on
            )
            uvicorn.Server(settings).run(sockets=[listener])
    return 0


@contextmanager
def _page(options: argparse.Namespace, folder: Path, users: list[tuple[str, str]]) -> Iterator[Any]:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise GenerateError('the web page needs Gradio: pip install "l2p-generate[serve]"') from None
    from l2p_generate.serve.page import build_page, make_app
    from l2p_generate.serve.studio import load_studio

    studio = load_studio(options, folder, _limits(options))
    names = answered_names(options.host, options.allow_host)
    page = build_page(studio)
    try:
        yield make_app(page, studio, auth=users, queue=options.queue, names=names, allowed=options.allow_host)
    finally:
        studio.stop()


@contextmanager
def _api(options: argparse.Namespace, folder: Path, tokens: list[str]) -> Iterator[Any]:
    from l2p_generate.model import sampling_defaults
    from l2p_generate.serve.api import Api, error_body, make_api
    from l2p_generate.serve.batching import BatchQueue
    from l2p_generate.serve.studio import load_model

    model, painter = load_model(options)
    queue = BatchQueue(painter, waiting=options.queue, batch=options.max_batch)
    api = Api(
        model=model,
        painter=painter,
        queue=queue,
        defaults=sampling_defaults(model.directory),
        limits=_limits(options),
        folder=folder,
        keep=options.output is not None,
        tokens=tokens,
    )
    names = answered_names(options.host, options.allow_host)
    app = make_api(api)
    app.add_middleware(Guard, names=names, allowed=options.allow_host, refuse=error_body)
    try:
        yield app
    finally:
        queue.stop()


def _limits(options: argparse.Namespace) -> Any:
    from l2p_generate.serve.studio import Limits

    return Limits(images=options.max_images, steps=options.max_steps, side=options.max_side)


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket on the port, by default on the first free one from 7860.

    Raises:
        GenerateError: the port is taken, or the address is not this machine's.
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
    raise GenerateError(f"cannot listen on {host}, port {port or f'{FIRST_PORT} and following'}: {reason}")


def read_auth(path: Path | None) -> list[tuple[str, str]]:
    """Users and passwords from a file, never from the command line, where other users could read them."""
    pairs = [line.partition(":") for line in _lines(path, "--auth-file")]
    if path and (not pairs or any(not user or not password for user, _, password in pairs)):
        raise GenerateError(f"--auth-file {path} must hold lines of user:password")
    return [(user, password) for user, _, password in pairs]


def read_tokens(path: Path | None) -> list[str]:
    """Bearer tokens from a file, for the same reason."""
    tokens = _lines(path, "--token-file")
    if path and (
        not tokens or any(len(token) < 16 or not token.isascii() or " " in token for token in tokens)
    ):
        raise GenerateError(f"--token-file {path} must hold a token a line, of at least 16 ASCII characters")
    return tokens


def _lines(path: Path | None, flag: str) -> list[str]:
    """The lines of a file that are neither empty nor comments."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in read_text(path).split("\n")]
    except UserError as error:
        raise GenerateError(f"{flag} {path}: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]
