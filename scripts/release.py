"""Build every wheel and source archive, and check them as their users will meet them; uploads nothing.

    uv run python scripts/release.py                              wheels, checked; every one installed alone
    uv run python scripts/release.py --python 3.12 --python 3.13  the same on these Pythons
    uv run python scripts/release.py --no-install                 only build and look inside

Checked: one version everywhere, equal to the newest entry of CHANGELOG.md; py.typed, the licence's text, the
paper's address and a description in each wheel, no tests; and that a wheel installed alone, with the lock
file's versions of its dependencies, imports every one of its modules and brings no package of ours that it
does not depend on.
"""

import argparse
import email
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAPER = "https://arxiv.org/abs/2605.12013"
OPTIONAL = ("training", "api", "page")  # modules that need an extra
IMPORT = """
import importlib, importlib.metadata, json, pkgutil, sys
name, allowed, optional = sys.argv[1], set(sys.argv[2].split()), set(sys.argv[3].split())
package = importlib.import_module(name)
heavy = {"torch", "ray", "deepspeed", "diffusers", "transformers", "gradio"} & set(sys.modules)
assert not heavy, f"importing {name} loads {sorted(heavy)}"
for item in pkgutil.walk_packages(package.__path__, name + "."):
    parts = item.name.split(".")
    if parts[-1] != "__main__" and not optional & set(parts):
        importlib.import_module(item.name)
for public in getattr(package, "__all__", []):
    getattr(package, public)
ours = {d.name for d in importlib.metadata.distributions() if d.name.startswith("l2p-")}
assert ours <= allowed, f"{sorted(ours - allowed)} came along"
size = sum(f.locate().stat().st_size for d in importlib.metadata.distributions() for f in d.files or []
           if f.locate().is_file())
print(json.dumps({"distributions": len(list(importlib.metadata.distributions())), "bytes": size}))
"""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files go (default dist/)")
    parser.add_argument("--python", action="append", metavar="VERSION", help="default: the running one")
    parser.add_argument("--package", action="append", metavar="NAME", help="install only these")
    parser.add_argument("--no-install", action="store_true")
    options = parser.parse_args()
    projects = [
        tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        for folder in ("packages", "apps")
        for path in sorted((ROOT / folder).glob("*/pyproject.toml"))
    ]
    version = check_versions(projects)
    _run("uv", "build", "--quiet", "--all-packages", "--out-dir", str(options.out), "--clear")
    for project in projects:
        wheel = options.out / f"{project['name'].replace('-', '_')}-{version}-py3-none-any.whl"
        check_wheel(wheel, project)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
    if not options.no_install:
        for python in options.python or [f"{sys.version_info.major}.{sys.version_info.minor}"]:
            for project in projects:
                if not options.package or project["name"] in options.package:
                    print(install_alone(project, projects, options.out, python), flush=True)
    print(f"release {version} is good; the files are in {options.out}")
    return 0


def check_versions(projects: list[dict]) -> str:
    """One version everywhere, and the changelog knows it."""
    versions = {project["version"] for project in projects}
    if len(versions) != 1:
        raise SystemExit(f"error: the packages have several versions: {sorted(versions)}; give them one")
    version = versions.pop()
    newest = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    if newest is None or newest.group(1) != version:
        known = newest.group(1) if newest else "no version"
        raise SystemExit(f"error: CHANGELOG.md is at {known}, the packages are at {version}; write the entry")
    return str(version)


def check_wheel(wheel: Path, project: dict) -> None:
    """What a wheel must hold, and must not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_string(archive.read(info).decode("utf-8"))
        texts = [archive.read(name) for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    module = project["name"].replace("-", "_")
    problems = {
        "has no py.typed": f"{module}/py.typed" not in names,
        "names no licence": metadata["License-Expression"] != "Apache-2.0",
        "does not carry the repository's LICENSE": texts != [(ROOT / "LICENSE").read_bytes()],
        "does not say where the paper is": f"Paper, {PAPER}" not in metadata.get_all("Project-URL", []),
        "has no description": not metadata.get_payload(),
        "allows other Pythons than its project": set(metadata["Requires-Python"].replace(" ", "").split(","))
        != set(project["requires-python"].split(",")),
        "carries tests or caches": any("test_" in name or "__pycache__" in name for name in names),
    }
    wrong = [problem for problem, found in problems.items() if found]
    if wrong:
        raise SystemExit(f"error: {wheel.name} {'; '.join(wrong)}")


def install_alone(project: dict, projects: list[dict], wheels: Path, python: str) -> str:
    """Install one wheel in a fresh environment and import all of it; a line that says what came along."""
    name = project["name"]
    with tempfile.TemporaryDirectory() as folder:
        constraints, environment = Path(folder) / "constraints.txt", Path(folder) / "env"
        exported = _run(
            *("uv", "export", "--quiet", "--locked", "--no-hashes", "--no-emit-workspace", "--all-packages"),
            *("--no-dev", "--format", "requirements-txt"),
        )
        constraints.write_text(exported, encoding="utf-8")
        _run("uv", "venv", "--quiet", "--python", python, str(environment))
        # uv keeps what it unpacked from a wheel of this name and version, and would install yesterday's.
        fresh = [option for each in projects for option in ("--refresh-package", each["name"])]
        _run(
            *("uv", "pip", "install", "--quiet", "--python", str(environment)),
            *("--constraint", str(constraints), "--find-links", str(wheels), *fresh),
            f"{name}=={project['version']}",
        )
        allowed = sorted(closure(name, {each["name"]: each for each in projects}))
        interpreter = environment / "bin" / "python"
        command = [
            str(interpreter),
            "-c",
            IMPORT,
            name.replace("-", "_"),
            " ".join(allowed),
            " ".join(OPTIONAL),
        ]
        found = json.loads(_run(*command, cwd=folder).splitlines()[-1])
    size = f"{found['bytes'] / 1e6:,.0f} MB"
    return f"{name} on Python {python}: alone, {found['distributions']} distributions, {size}"


def closure(name: str, projects: dict[str, dict]) -> set[str]:
    """The packages of ours that a package needs, itself included."""
    own = {re.split(r"[\[<>=; ]", needed)[0] for needed in projects[name]["dependencies"]} & projects.keys()
    return {name}.union(*(closure(each, projects) for each in own))


def _run(*command: str, cwd: str | Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[:4])} ... failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
