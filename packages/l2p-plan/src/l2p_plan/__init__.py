"""What a latent-to-pixel transfer costs before it runs: counted on meta tensors, from plain values (L2P)."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Corpus": "l2p_plan.transfer",
    "Costs": "l2p_plan.costs",
    "Evaluation": "l2p_plan.transfer",
    "Machine": "l2p_plan.costs",
    "ModelPlan": "l2p_plan.model",
    "PlanError": "l2p_plan.errors",
    "Source": "l2p_plan.transfer",
    "Surgery": "l2p_plan.transfer",
    "Transfer": "l2p_plan.transfer",
    "estimate_costs": "l2p_plan.costs",
    "plan_model": "l2p_plan.model",
}

__all__ = [
    "Corpus",
    "Costs",
    "Evaluation",
    "Machine",
    "ModelPlan",
    "PlanError",
    "Source",
    "Surgery",
    "Transfer",
    "estimate_costs",
    "plan_model",
]


def __getattr__(name: str) -> Any:
    """Load the home of a public name on first use: torch takes seconds to import."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'l2p_plan' has no attribute {name!r}")
