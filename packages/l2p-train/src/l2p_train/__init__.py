"""The L2P trainer: DeepSpeed ZeRO, freeze masks, noise shift, exact resume (L2P, eq. 5)."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Interrupted": "l2p_train.errors",
    "NonFiniteLossError": "l2p_train.errors",
    "TrainConfig": "l2p_train.config",
    "TrainError": "l2p_train.errors",
    "TrainResult": "l2p_train.run.run_directory",
    "config_from_mapping": "l2p_train.config",
    "estimate": "l2p_train.memory",
    "export_model": "l2p_train.run.export",
    "launch": "l2p_train.run.launcher",
    "load_config": "l2p_train.config",
    "plan_for_model": "l2p_train.freeze",
    "train": "l2p_train.trainer",
}

__all__ = [
    "Interrupted",
    "NonFiniteLossError",
    "TrainConfig",
    "TrainError",
    "TrainResult",
    "config_from_mapping",
    "estimate",
    "export_model",
    "launch",
    "load_config",
    "plan_for_model",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load the home of a public name on first use: torch and deepspeed take seconds to import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'l2p_train' has no attribute {name!r}")
