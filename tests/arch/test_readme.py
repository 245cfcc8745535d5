"""The README's code runs as it stands, on the untrained miniature and at its size."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "packages/l2p-arch/README.md"


def test_the_code_of_the_readme_runs(
    untrained_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Z-Image-Turbo").symlink_to(untrained_source)
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    for block in blocks:
        small = block.replace("1024", "32").replace("num_inference_steps=30", "num_inference_steps=1")
        exec(compile(small, str(README), "exec"), namespace)
    assert namespace["velocity"].shape == (2, 3, 32, 32)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "z-image-l2p",
        "imported",
        "merged",
        "delta.safetensors",
    }
