"""Counts against closed forms; meta tensors only."""

import pytest
import torch
from l2p_eval.efficiency import count, measure
from l2p_eval.errors import EvalError
from torch.nn.functional import scaled_dot_product_attention


def test_operations_and_memory_of_a_chain_are_exact() -> None:
    with torch.device("meta"):
        layer, x = torch.nn.Linear(64, 64), torch.empty(32, 64)

    def chain() -> torch.Tensor:
        y = x
        for _ in range(10):
            y = layer(y).relu_()
        return y

    counted = count(chain, layer)
    size = 32 * 64 * 4
    assert counted.flops == 10 * 2 * 32 * 64 * 64
    assert counted.weight_bytes == (64 * 64 + 64) * 4
    assert (
        counted.peak_activation_bytes == 3 * size
    )  # x, which lives all the time, and two links of the chain


def test_attention_counts_its_products_and_never_holds_the_scores() -> None:
    with torch.device("meta"):
        q = torch.empty(1, 2, 4096, 64, dtype=torch.bfloat16)
        kv = torch.empty(1, 1, 4096, 64, dtype=torch.bfloat16)
        nothing = torch.nn.Identity()
    counted = count(lambda: scaled_dot_product_attention(q, q, q), nothing)
    assert counted.flops == 2 * 2 * 2 * 4096 * 4096 * 64
    assert counted.peak_activation_bytes < 4096 * 4096 * 2 / 4
    grouped = count(lambda: scaled_dot_product_attention(q, kv, kv, enable_gqa=True), nothing)
    assert grouped.flops == counted.flops


def test_real_weights_are_not_counted_with() -> None:
    with pytest.raises(EvalError, match="meta device"):
        count(lambda: None, torch.nn.Linear(1100, 1100))


def test_a_measurement_is_a_median_between_its_quartiles() -> None:
    calls = []
    timing = measure(lambda: calls.append(1), "cpu", repeats=5, warmup=2)
    assert len(calls) == 7
    low, high = timing.quartiles_seconds
    assert 0 <= low <= timing.median_seconds <= high
    assert timing.peak_allocated_bytes is None
    with pytest.raises(EvalError, match="1 or more"):
        measure(lambda: None, "cpu", repeats=0)
