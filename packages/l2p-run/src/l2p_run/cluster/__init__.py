"""One Ray session: a cluster at an address, or Ray on this machine. Ray only executes; it keeps no state of
ours."""

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from l2p_run.errors import UserError, one_line

_START_ATTEMPTS = 3
_ENVIRONMENT = {
    # Ray would else rebuild the environment of `uv run` for every worker; machine and nodes have it already.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ core writes to our stderr otherwise
}


@contextmanager
def ray_session(
    address: str | None = None, *, cpus: int = 0, setting: str = "", without: str = ""
) -> Iterator[Any]:
    """Yield the `ray` module, connected; stopped at the end if it was started here.

    Args:
        address: "auto", HOST:PORT or ray:// of a running cluster; None or "": this machine.
        cpus: logical ones that a session on this machine must offer at least: more workers than cores are the
            caller's decision.
        setting: the setting that holds the address, for errors ("cluster.address").
        without: what does without Ray, for errors ("workers = 0").

    Raises:
        UserError: Ray is not installed, nobody answers at the address, or Ray does not start here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"Ray is needed and not installed ({one_line(error)}); install l2p-run[ray]"
        ) from error
    started = not ray.is_initialized()
    if started:
        with standard_error_held_back():
            if address:
                _connect(ray, address, setting)
            else:
                _start(ray, cpus, without)
    try:
        with _quiet_loggers():
            yield ray
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str, setting: str) -> None:
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"{setting} {address!r}" if setting else f"the Ray cluster at {address!r}"
        raise UserError(f"{what} cannot be reached: {reason}") from None


def _start(ray: Any, cpus: int, without: str) -> None:
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            ray.init(
                "local",
                num_cpus=max(os.cpu_count() or 1, cpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=256 << 20,  # images go to disk, not through the store
            )
            return
        except Exception as error:  # Ray gives its own processes 30 s, which a busy machine can exceed
            ray.shutdown()
            if attempt == _START_ATTEMPTS:
                remedy = f", or with {without}, which needs no Ray" if without else ""
                raise UserError(
                    f"Ray did not start here in {_START_ATTEMPTS} attempts ({one_line(error, 120)}); "
                    f"run the same command when it is less busy{remedy}"
                ) from error


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def standard_error_held_back() -> Iterator[None]:
    """Keep file descriptor 2 silent, also for C++ code; what was written comes out if the block fails with
    anything but a `UserError`, which says in one line what matters."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError):  # there is no stderr to hold back
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def workers_that_fit(resources: Mapping[str, float], each: Mapping[str, float], *, setting: str = "") -> int:
    """Return how many workers a cluster holds that take `each` of its resources; at least 1.

    Args:
        resources: the cluster's, as `ray.cluster_resources()` says.
        each: what one worker takes; without "GPU" and "CPU" it is one GPU, or one CPU where there is no GPU.
        setting: where custom resources were asked for, for errors.

    Raises:
        UserError: no node has a resource of that name, or too little of it; Ray would wait for ever.
    """
    wanted = dict(each)
    if "GPU" not in wanted and resources.get("GPU", 0) >= 1:
        wanted["GPU"] = 1
    if "GPU" not in wanted and "CPU" not in wanted:
        wanted["CPU"] = 1
    held = []
    for name, amount in wanted.items():
        if not amount:
            continue
        if resources.get(name, 0) < amount and name not in ("CPU", "GPU"):
            known = ", ".join(f"{key} {value:g}" for key, value in resources.items() if ":" not in key)
            raise UserError(
                f"{setting or 'a worker'} takes {amount:g} {name!r}, the cluster has {known}; start nodes"
                f" with `ray start --resources='{{\"{name}\": 1}}'`, or name one that it has"
            )
        held.append(math.floor(resources.get(name, 0) / amount))
    return max(1, min(held)) if held else 1
