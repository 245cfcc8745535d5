"""What a case's command line does, in the child: the real commands, in this process."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

COMMANDS = {
    "l2p-transfer": "l2p_transfer.cli",
    "l2p-train": "l2p_train.__main__",
    "l2p-ablate": "l2p_ablate.cli",
    "l2p-generate": "l2p_generate.cli",
    "l2p-evaluate": "l2p_evaluate.cli",
    "l2p-data": "l2p_data.cli",
    "l2p-arch": "l2p_arch.cli",
}
BEGINNINGS = {
    "l2p-transfer": ("l2p_transfer.runner", "execute"),
    "l2p-ablate": ("l2p_ablate.runner", "Store"),
}
"""Where the hours begin: a module, and what it calls then. All before it must accept what a dry run does."""


class Begun(BaseException):
    """A run has accepted what it was given."""


def import_all() -> None:
    """Import what commands import when they are at it, so that each case begins at once. Computes nothing."""
    for module in (
        *COMMANDS.values(),
        *(
            "l2p_transfer.planning.plan",
            "l2p_ablate.runner",
            "l2p_serve.painting",
            "l2p_serve.api.application",
        ),
        *(
            "l2p_data.commands",
            "l2p_eval.scores",
            "l2p_mini.detector",
            "l2p_train.trainer",
            "l2p_train.memory",
        ),
        *(
            "l2p_arch.surgery.convert",
            "l2p_arch.files.public_layout",
            "diffusers",
            "transformers",
            "fastapi.testclient",
        ),
    ):
        import_module(module)


def warm(seeds: Path) -> None:
    """Do once, here, what most cases do, so that children inherit what is imported at its first use.

    On one thread, and without polars, whose threads a child would wait for in vain.
    """
    import torch

    torch.set_num_threads(1)
    here, streams = os.getcwd(), [os.dup(number) for number in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.chdir(seeds)
    try:
        for number in (1, 2):
            os.dup2(nothing, number)
        small = ["--height", "16", "--width", "16", "--steps", "1", "--device", "cpu"]
        import_module(COMMANDS["l2p-generate"]).main(
            ["--model", "run/model", *small, "a ring", "-o", "w.png"]
        )
        import_module(COMMANDS["l2p-transfer"]).main(["tiny.toml", "--dry-run"])
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
        os.chdir(here)


def work(command: Sequence[str], folder: Path) -> int:
    """Do what a command line says; returns its exit code."""
    program, *arguments = command
    if program == "request":
        return _request()
    begin = program.startswith("begin:")
    program = program.removeprefix("begin:")
    main: Callable[[list[str]], int] = import_module(COMMANDS[program]).main
    os.environ["L2P_CACHE"] = str(folder / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    if begin and program in BEGINNINGS:
        module, name = BEGINNINGS[program]
        setattr(import_module(module), name, _begun)
        try:
            return main(arguments)
        except Begun:
            return 0
    return main(arguments)


def _begun(*_: Any, **__: Any) -> None:
    raise Begun


def _request() -> int:
    """Send the case's request to the API over a real model; 1 for an answer that is a server's fault."""
    from fastapi.testclient import TestClient
    from l2p_generate import serve
    from l2p_serve.door.scratch import scratch_folder

    options = serve.parse(
        ["--api", "--model", "m", "--device", "cpu", "--max-steps", "4", "--max-side", "64"]
    )
    head = json.loads(Path("request.json").read_text())
    with scratch_folder() as scratch, serve._api(options, scratch, []) as app:
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        try:
            answer = client.request(
                head["method"], head["path"], headers=head["headers"], content=Path("body").read_bytes()
            )
        except (UnicodeError, ValueError) as error:  # the client itself refuses such an address
            print(f"error: not sent: {error}"[:200], file=sys.stderr)
            return 2
    return _answered(answer)


def _answered(answer: Any) -> int:
    if answer.status_code >= 500:
        print(f"error: HTTP {answer.status_code}: {answer.text[:500]}", file=sys.stderr)
        return 1
    if answer.status_code < 400:
        return 0
    if answer.headers.get("content-type", "").startswith("application/json") and answer.text:
        message = answer.json()["error"]["message"]
        print(f"error: {message}", file=sys.stderr)
        return 2
    print(f"error: HTTP {answer.status_code} without words", file=sys.stderr)
    return 2
