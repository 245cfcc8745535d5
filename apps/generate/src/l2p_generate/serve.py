"""`l2p-generate serve`: a web page to try a model, or with --api OpenAI's image endpoints over it."""

import argparse
import os
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2p_run.command import Parser, number, out
from l2p_run.places import make_folder
from l2p_run.progress import say
from l2p_serve.door.credentials import read_auth, read_tokens
from l2p_serve.door.guard import answered_names, is_loopback
from l2p_serve.door.listening import listen, serve_until_interrupted
from l2p_serve.door.scratch import scratch_folder
from l2p_serve.errors import ServeError

from l2p_generate.options import COUNT, SIDE, STEPS, add_model_options


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags after `serve`."""
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
    further = "a further name to answer to, such as that of a reverse proxy; may be given several times"
    add("--allow-host", action="append", default=[], metavar="NAME", help=further)
    users = "lines of user:password; required when --host is not a loopback address"
    add("--auth-file", type=Path, metavar="FILE", help=users)
    add("--output", type=Path, metavar="DIR", help="keep the pictures here; default: thrown away at the end")
    add("--max-images", type=COUNT, default=4, metavar="N", help="per request (default 4)")
    add("--max-steps", type=STEPS, default=100, metavar="N", help="per image (default 100)")
    add("--max-side", type=SIDE, default=2048, metavar="PX", help="of an image (default 2048)")
    add("--queue", type=COUNT, default=16, metavar="N", help="requests that may wait (default 16)")
    add("--open", action="store_true", help="open a browser")
    add("--api", action="store_true", help="OpenAI's image endpoints instead of the page")
    tokens = "with --api: a bearer token a line; required when --host is not a loopback address"
    add("--token-file", type=Path, metavar="FILE", help=tokens)
    add("--max-batch", type=COUNT, default=8, metavar="N", help="with --api: images at once (default 8)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    users, tokens = read_auth(options.auth_file), read_tokens(options.token_file)
    if (tokens and not options.api) or (users and options.api):
        raise ServeError("--auth-file is for the page, and --token-file for --api; give the other one")
    if not is_loopback(options.host) and not (users or tokens):
        flag, holds = ("token", "a token each") if options.api else ("auth", "user:password")
        raise ServeError(
            f"--host {options.host} is open to others; add --{flag}-file with lines of {holds},"
            " or listen on 127.0.0.1"
        )

    def ready(address: str) -> None:
        out(f"{address}/v1" if options.api else address)
        say("Ctrl-C ends it")
        if options.open:
            webbrowser.open(address)

    with scratch_folder() as scratch, listen(options.host, options.port) as listener:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        _check_extra(options)
        folder = (options.output or scratch / "pictures").absolute()
        make_folder(folder, "choose another --output")
        with _api(options, folder, tokens) if options.api else _page(options, folder, users) as app:
            serve_until_interrupted(app, listener, ready)
    return 0


def _check_extra(options: argparse.Namespace) -> None:
    what = "server" if options.api else "web page"
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401

        if not options.api:
            import gradio  # noqa: F401
    except ImportError:
        raise ServeError(f'the {what} needs Gradio: pip install "l2p-generate[serve]"') from None


@contextmanager
def _page(options: argparse.Namespace, folder: Path, users: list[tuple[str, str]]) -> Iterator[Any]:
    from l2p_arch.sampling.settings import sampling_defaults
    from l2p_serve.page.form import build_page, make_app
    from l2p_serve.page.source import load_source
    from l2p_serve.page.studio import Studio

    from l2p_generate.model import choose_source, load_model

    source = None if options.no_source else choose_source(options.model, options.source)
    model, painter = load_model(options)
    beside = source and load_source(
        source, device=painter.device, dtype=painter.dtype, cpu_offload=options.cpu_offload
    )
    studio = Studio(
        painter=painter,
        source=beside,
        source_name=source.path.name if source else "",
        defaults=sampling_defaults(model.directory),
        limits=_limits(options),
        folder=folder,
    )
    names = answered_names(options.host, options.allow_host)
    page = build_page(studio)
    try:
        yield make_app(page, studio, auth=users, queue=options.queue, names=names, allowed=options.allow_host)
    finally:
        studio.stop()


@contextmanager
def _api(options: argparse.Namespace, folder: Path, tokens: list[str]) -> Iterator[Any]:
    from l2p_arch.sampling.settings import sampling_defaults
    from l2p_serve.api.application import api_application

    from l2p_generate.model import load_model

    model, painter = load_model(options)
    with api_application(
        painter,
        defaults=sampling_defaults(model.directory),
        folder=folder,
        keep=options.output is not None,
        host=options.host,
        allowed=options.allow_host,
        tokens=tokens,
        limits=_limits(options),
        waiting=options.queue,
        batch=options.max_batch,
    ) as app:
        yield app


def _limits(options: argparse.Namespace) -> Any:
    from l2p_serve.limits import Limits

    return Limits(images=options.max_images, steps=options.max_steps, side=options.max_side)
