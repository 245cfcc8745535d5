"""The settings of a Ray cluster that runs stages: where it is, and which of its nodes run what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from l2p_run.errors import UserError
from l2p_run.settings import setting

OWN_SETTINGS = {
    "CPU": "cpus_per_process for the training",
    "GPU": "prompts.tensor_parallel for an LLM; the other workers take one each",
    "memory": "fewer workers",
    "object_store_memory": "fewer workers",
}
"""Ray's own resources: no custom ones, and where to set them instead."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """The Ray cluster that images and training run on. Where a run runs does not change what it makes."""

    address: str = ""  # "auto" within a job of the cluster, or HOST:PORT of its head; "": this machine alone
    cpus_per_process: int = setting(1, ge=1)  # that Ray keeps for each training process; threads of an
    # optimiser on the host
    max_failures: int = setting(3, ge=0)  # lost nodes that the training survives
    # Custom resources of the nodes that one worker of a stage takes, such as { training = 1 }: where it runs.
    llm_resources: Mapping[str, Any] = field(default_factory=dict)  # each vLLM replica
    synthesis_resources: Mapping[str, Any] = field(default_factory=dict)  # each worker that paints the corpus
    training_resources: Mapping[str, Any] = field(default_factory=dict)  # each training process
    evaluation_resources: Mapping[str, Any] = field(default_factory=dict)  # each worker that paints for it

    def check(self, table: str = "cluster") -> None:
        """Raise for resources that no node can have.

        Args:
            table: what the table is called, for errors.

        Raises:
            UserError: there is no cluster, a name is Ray's own, or an amount is none that Ray can give.
        """
        for key in ("llm_resources", "synthesis_resources", "training_resources", "evaluation_resources"):
            resources = getattr(self, key)
            if resources and not self.address:
                raise UserError(f"{table}.{key} is for the nodes of a cluster; give {table}.address as well")
            for name, amount in resources.items():
                _check_amount(f"{table}.{key}.{name}", name, amount, table)


def _check_amount(where: str, name: str, amount: Any, table: str) -> None:
    if name in OWN_SETTINGS:
        own = f"{table}.{OWN_SETTINGS[name]}" if name == "CPU" else OWN_SETTINGS[name]
        raise UserError(f"{where} is one of Ray's own resources; use {own}")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
        raise UserError(f"{where} is {amount!r}; it must be a number above 0, such as 1")
    if amount > 1 and amount != int(amount):
        raise UserError(f"{where} is {amount}; Ray divides a resource only below 1: use {int(amount)}")
