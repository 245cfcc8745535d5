"""Files, functions and tests that a page or a comment names are where it says."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = {  # the pages' short names, as the map's first lines explain them
    **{
        name: f"packages/l2p-{name}/src/l2p_{name}"
        for name in ("arch", "data", "train", "eval", "plan", "mini", "run", "serve")
    },
    **{
        name: f"apps/{name}/src/l2p_{name}"
        for name in ("transfer", "generate", "evaluate", "ablate", "comfyui")
    },
}
FOLDERS = "packages|apps|configs|docs|tests|scripts|benchmarks|deploy"
PATH = re.compile(rf"(?<![\w/.:-])((?:[\w-]+/)+[\w-]+\.py|(?:{FOLDERS})/[\w/.-]+\.\w+)(?![\w/])")
NAME = re.compile(r"(?<![\w/.:<-])([a-z_]\w*\.py)(?![\w/])")
PLACE = re.compile(r"`([\w/-]+\.py)` `([A-Za-z_][\w.]*)`")
PLACEHOLDER = re.compile(r"[A-Z]{4,}|(?:^|/)my_")  # NAME.toml, my_metric.py: the reader's own
THEIRS = {"stage3.py", "stage_1_and_2.py"}  # DeepSpeed's


@cache
def _files() -> frozenset[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(name for name in listed.stdout.splitlines() if (ROOT / name).exists())


def _pages() -> list[Path]:
    # The changelog tells of names as they were.
    return sorted(ROOT / name for name in _files() if name.endswith(".md") and name != "CHANGELOG.md")


def _resolved(name: str) -> Path | None:
    """The file that a name stands for, or None: its whole path, a short one, or the end of one."""
    first, _, rest = name.partition("/")
    wanted = [name] + ([f"{SHORT[first]}/{rest}"] if first in SHORT else [])
    exact = next((each for each in wanted if each in _files()), None)
    found = exact or next((each for each in sorted(_files()) if each.endswith(f"/{name}")), None)
    return ROOT / found if found else None


def _named(text: str) -> set[str]:
    return {name for name in PATH.findall(re.sub(r"https?://\S+", "", text)) if not PLACEHOLDER.search(name)}


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = _named(page.read_text(encoding="utf-8"))
    assert not sorted(name for name in named if _resolved(name) is None)


@pytest.mark.parametrize(
    "page",
    [page for page in _pages() if PLACE.search(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.name,
)
def test_every_function_that_a_page_places_in_a_file_is_there(page: Path) -> None:
    for name, symbol in PLACE.findall(page.read_text(encoding="utf-8")):
        path = _resolved(name)
        assert path is not None and symbol in set(_symbols(path)), f"{symbol} is not in {name}"


def _symbols(path: Path) -> Iterator[str]:
    """Names that a module defines, and its classes' own as Class.name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _tests() -> set[str]:
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
    return found


def test_every_test_that_a_page_names_exists() -> None:
    known = _tests()
    for page in _pages():
        named = set(re.findall(r"(?<!/)\b(test_\w+)\b(?!\.py)", page.read_text(encoding="utf-8")))
        assert named <= known, f"{page.name} names {sorted(named - known)}"


def _said(path: Path) -> str:
    """A module's comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(ast.parse(text)) if isinstance(node, nodes)]
    return "\n".join(comments + [ast.get_docstring(node, clean=False) or "" for node in documented])


@pytest.mark.parametrize("group", ["packages", "apps", "tests", "scripts", "benchmarks"])
def test_every_module_that_a_comment_names_exists(group: str) -> None:
    """A path is a file's; a name alone is that of a module of the same package or folder."""
    stale = []
    for name in sorted(file for file in _files() if file.startswith(f"{group}/") and file.endswith(".py")):
        said = _said(ROOT / name)
        top = ROOT.joinpath(*Path(name).parts[: 2 if group in ("packages", "apps") else 1])
        stale += [f"{name}: {module}" for module in _named(said) if _resolved(module) is None]
        for module in {each for each in NAME.findall(said) if not PLACEHOLDER.search(each)} - THEIRS:
            if not next(top.rglob(module), None):
                stale.append(f"{name}: {module}")
    assert not stale


def test_every_benchmark_has_its_line() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == set(re.findall(r"`(\w+\.py)`", table))


def test_the_slowest_files_of_the_suite_are_there(pytestconfig: pytest.Config) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert conftest is not None
    assert [name for name in conftest.SLOWEST_FILES if not (ROOT / "tests" / name).is_file()] == []
