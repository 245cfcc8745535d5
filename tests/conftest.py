"""Fixtures that several packages' tests share."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

# Under `uv run` Ray would build every worker an environment of its own; it reads this when it is imported.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The threads of two test processes share the cores: those that wait must not spin meanwhile (GNU's OpenMP
    # reads this when PyTorch is imported), and Ray must not yield to the other process with all it does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_worker_niceness", "0")

SLOWEST_FILES = (
    "train/test_cluster_launchers.py",
    "train/test_processes.py",
    "apps/test_ablate.py",
    "data/test_survival.py",
    "data/test_synthesis.py",
    "apps/test_transfer_cluster.py",
    "mini/test_source_model.py",
    "train/test_storage.py",
    "train/test_launcher.py",
    "arch/test_z_image_parity.py",
    "train/test_guidance_range.py",
    "train/test_distillation.py",
    "data/test_object_store.py",
    "repository/test_fuzz.py",
    "apps/test_evaluate.py",
    "apps/test_plan.py",
    "apps/test_transfer_sizes.py",
    "apps/test_transfer_storage.py",
    "train/test_shared_memory.py",
)
"""Those of more than half a minute. With `-n` they come first: no worker is alone with one at the end."""


@pytest.hookimpl(optionalhook=True)  # one of pytest-xdist's
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Let one worker run all tests of a file: they share what takes seconds to make."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":  # which is what `-n` alone means
        return None
    config.option.loadscopereorder = False  # it would put the files of the most tests first
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put `SLOWEST_FILES` first in every worker."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {Path(__file__).parent / name: place for place, name in enumerate(SLOWEST_FILES)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def untrained_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in Z-Image-Turbo's layout with the miniature's architecture and random weights."""
    from l2p_mini.architecture import write_untrained_source

    return write_untrained_source(tmp_path_factory.mktemp("source"), seed=0)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket of a real server; the environment is what a user of a private store sets."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # What a server of another module was given is still there: it belongs to the process.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "of-a-test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "of-a-test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
        yield "s3://bucket"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def serve_chat() -> Iterator[Callable[[Callable[[Any], tuple[int, Any]]], str]]:
    """A function that starts a real server on loopback and returns its address, for `base_url`.

    It is given what answers: a POST's JSON body -> (status, the answer: bytes as they are, or a JSON value).
    """
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Callable[[Any], tuple[int, Any]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = answer(body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def picture_zoo() -> list[Any]:
    """Pictures of every kind, each with what people see of it (tests/picture_zoo.py)."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("picture_zoo", Path(__file__).with_name("picture_zoo.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[Any] = module.zoo()
    return found
