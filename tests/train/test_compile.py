"""Which blocks are compiled, and where compiled blocks run as they are."""

from pathlib import Path

import pytest
import torch
from l2p_arch import L2PTransformer
from l2p_train.config import TrainConfig, config_from_mapping
from l2p_train.errors import TrainError
from l2p_train.zero.engine import compile_blocks, uncompiled


@pytest.fixture
def model(tiny_model: Path) -> L2PTransformer:
    return L2PTransformer.from_pretrained(tiny_model / "transformer")


def compiled(model: L2PTransformer) -> list[bool]:
    return [model.get_submodule(name)._compiled_call_impl is not None for name in model.block_names()]


def config(**settings: object) -> TrainConfig:
    return config_from_mapping({"model": "m", "corpus": "c", "output": "o", **settings})


def test_every_main_block_is_compiled_where_it_is_asked_for(model: L2PTransformer) -> None:
    compile_blocks(model, config())
    assert not any(compiled(model))
    compile_blocks(model, config(compile=True))
    assert all(compiled(model))


def test_auto_compiles_only_where_a_compiler_is_at_hand(
    model: L2PTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    monkeypatch.setenv("CXX", str(compiler))
    with torch._dynamo.config.patch(suppress_errors=False):  # "auto" changes it; put it back
        compile_blocks(model, config(compile="auto"))
        assert not any(compiled(model))
        compiler.write_text("#!/bin/sh\n")
        compiler.chmod(0o755)
        compile_blocks(model, config(compile="auto"))
        assert all(compiled(model))


def test_other_words_than_auto_are_named() -> None:
    with pytest.raises(TrainError, match="compile is 'always'; it must be"):
        config(compile="always")


def test_sampling_runs_compiled_blocks_as_they_are() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    class Block(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + 1

    block = Block()
    block.compile(backend=backend)
    with uncompiled():
        block(torch.ones(2, 4))
    assert not graphs
    block(torch.ones(3, 4))
    assert len(graphs) == 1
