"""The documentation's code is run, its commands are known to the real parsers, its configs are read."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def _commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for line in "\n".join(_blocks(page, "bash")).replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" < ")[0], comments=True)
            if "--" in words and words[:3] == ["ray", "job", "submit"]:
                words = words[words.index("--") + 1 :]
            words = words[2:] if words[:2] == ["uv", "run"] else words
            if words and words[0].startswith("l2p-"):
                found.append((page.name, words))
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page, "python")], ids=lambda page: page.name
)
def test_python_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untrained_run: Path, untrained_source: Path
) -> None:
    """In order, in a directory that holds what a reader has by then: a run, a source, a single file."""
    from l2p_arch import export_public

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mini").symlink_to(untrained_run)
    (tmp_path / "Z-Image-Turbo").symlink_to(untrained_source)
    export_public(untrained_run / "model", "model-1k-merge.safetensors")
    names: dict[str, Any] = {"__name__": "example"}
    for block in _blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize(("page", "words"), _commands(), ids=lambda value: str(value)[:60])
def test_commands_have_the_flags_that_the_guides_give_them(page: str, words: list[str]) -> None:
    import importlib

    parsers = {
        "l2p-generate": ("l2p_generate.cli", "_parser"),
        "l2p-transfer": ("l2p_transfer.cli", "_parser"),
        "l2p-data": ("l2p_data.arguments", "build_parser"),
        "l2p-arch": ("l2p_arch.cli", "parser"),
        "l2p-train": ("l2p_train.__main__", "_parser"),
    }
    if words[:2] == ["l2p-train", "distill"]:
        importlib.import_module("l2p_train.distill").parser().parse_args(words[2:])
        return
    if words[:2] == ["l2p-generate", "serve"]:
        importlib.import_module("l2p_generate.serve").parse(words[2:])
        return
    if words[0] == "l2p-evaluate":  # its parser knows the chosen metric's options alone
        importlib.import_module("l2p_evaluate.cli")._parser(words[1]).parse_args(words[1:])
        return
    module, function = parsers[words[0]]
    options = getattr(importlib.import_module(module), function)().parse_args(words[1:])
    if words[0] == "l2p-transfer":
        assert (ROOT / options.config).is_file()


def test_the_guide_to_pictures_has_every_flag() -> None:
    from l2p_generate.cli import _parser

    page = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
    flags = {action.option_strings[-1] for action in _parser()._actions if action.option_strings}
    shown = {"--help": "", "--output": "`-o ", "--images-per-prompt": "`-n`"}
    assert not [flag for flag in sorted(flags) if shown.get(flag, f"`{flag}") not in page]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page, "toml")], ids=lambda page: page.name
)
def test_toml_examples_are_settings(page: Path) -> None:
    from l2p_run.settings import read_table
    from l2p_transfer.config import TABLES

    for block in _blocks(page, "toml"):
        for name, table in tomllib.loads(block).items():
            read_table(TABLES[name], table, name, ROOT)


def test_every_page_is_in_the_navigation_and_every_local_link_leads_somewhere() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    for page in PAGES:
        assert page.relative_to(ROOT / "docs").as_posix() in navigation
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_cluster_manifest_is_for_this_config() -> None:
    import yaml
    from l2p_transfer.config import load_config

    claim, job = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8"))
    words = shlex.split(job["spec"]["entrypoint"])
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    config = load_config(ROOT / words[1], overrides)
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    (container,) = workers["template"]["spec"]["containers"]
    assert workers["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"] == config.processes
    volumes = workers["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    for path in (config.run.output, config.source.model, config.prompts.file, config.evaluate.metadata):
        assert str(path).startswith("/shared/")
