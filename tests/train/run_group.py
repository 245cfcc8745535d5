"""Runs trainings in groups of processes that share one import: `python run_group.py jobs.json`.

jobs.json: [[config.json, number of processes], ...]. Each process is a fork of this one, taken before any
thread exists, with torchrun's environment variables; its report is `output/report-RANK.json`.
"""

import json
import os
import socket
import sys
import traceback
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def child(path: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from l2p_train import load_config, trainer

    config = load_config(path)
    shares = {}
    original = trainer.build_engine

    def build(model, plan, settings, processes):
        # What this process holds of the model, right after it was loaded.
        shares["elements"] = sum(parameter.numel() for parameter in model.parameters())
        held = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
        shares["held"] = sum(tensor.numel() for tensor in held)
        return original(model, plan, settings, processes)

    trainer.build_engine = build
    trainer.train(config)
    report = config.output / f"report-{environment['RANK']}.json"
    report.write_text(json.dumps(shares))


def run(path: str, processes: int) -> None:
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(path, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"})
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(f"{path} with {processes} processes: exit codes {codes}")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"
    # All that a training imports: six of its seven seconds, which every process would spend again.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import diffusers
    import l2p_train.trainer  # noqa: F401
    import transformers
    from l2p_arch import L2PPipeline, L2PTransformer  # noqa: F401

    for name in ("ZImagePipeline", "ZImageTransformer2DModel"):
        getattr(diffusers, name)
    for name in ("AutoModel", "AutoTokenizer", "Qwen3Model"):
        getattr(transformers, name)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would not come along"
    for config, count in json.loads(Path(sys.argv[1]).read_text()):
        run(config, count)
