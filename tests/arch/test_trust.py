"""Nothing that is loaded comes from the network or out of a pickle."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from l2p_arch import ArchError, L2PTransformer, convert
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
_PARTS = (
    "Tokenizer",
    "Processor",
    "kind.from_pretrained(model, local_files_only=True, **options)",
    "folder)",
    "AutoConfig",
)


def _calls() -> list[tuple[str, str]]:
    """(place, source text) of every `from_pretrained` in the packages and apps."""
    found = []
    for path in sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("apps/*/src/**/*.py")]):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node)))
    return found


def test_every_network_is_loaded_from_safetensors_of_this_machine() -> None:
    calls = _calls()
    assert len(calls) > 10
    careless = [
        f"{place}: {call}"
        for place, call in calls
        if not any(part in call for part in _PARTS)
        and "use_safetensors=True" not in call
        and "**options" not in call  # which the tests of those functions look at
    ]
    assert not careless


def test_a_transformer_of_ours_is_not_read_from_a_pickle(
    tmp_path: Path, tiny_trunks: dict[str, dict[str, Any]]
) -> None:
    model = L2PTransformer("z-image", tiny_trunks["z-image"], 16, (8, 8, 8, 8))
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("*.bin"))
    with pytest.raises(OSError, match="safetensors"):
        L2PTransformer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "name", "initialisation"),
    [
        ("vae", "diffusion_pytorch_model", "fitted"),
        ("text_encoder", "model", "gated"),
    ],
)
def test_surgery_that_measures_the_source_loads_no_pickle(
    untrained_source: Path, tmp_path: Path, part: str, name: str, initialisation: str
) -> None:
    import logging
    import shutil

    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(listener)
    source = tmp_path / "source"
    shutil.copytree(untrained_source, source)
    weights = source / part / f"{name}.safetensors"
    pickled = {"vae": "diffusion_pytorch_model.bin", "text_encoder": "pytorch_model.bin"}[part]
    torch.save(load_file(weights), source / part / pickled)
    weights.unlink()
    with pytest.raises(ArchError, match="it must hold safetensors, for pickles") as caught:
        convert(
            source,
            tmp_path / "out",
            head_channels=(16, 8, 8, 8),
            initialisation=initialisation,
            calibration_images=torch.rand(2, 3, 64, 64) * 2 - 1,
        )
    logging.getLogger("diffusers").removeHandler(listener)
    assert "\n" not in str(caught.value) and not said, "the library says the same beside us"
    assert not (tmp_path / "out").exists()
