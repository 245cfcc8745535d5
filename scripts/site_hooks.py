"""What the documentation site adds: PAPER.md as a page, and every module's source.

Files that a page names become links to that source.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("packages", "apps", "benchmarks", "scripts")
SHORT = {  # as the first lines of PAPER.md explain them
    **{
        name: f"packages/l2p-{name}/src/l2p_{name}"
        for name in ("arch", "data", "train", "eval", "plan", "mini", "run", "serve")
    },
    **{
        name: f"apps/{name}/src/l2p_{name}"
        for name in ("transfer", "generate", "evaluate", "ablate", "comfyui")
    },
}
SOURCE = """---
search: {{exclude: true}}
hide: [toc]
---

# {name}

``````python
{text}
``````
"""


def modules() -> list[str]:
    """The paths of all modules from the repository's root, as one writes them."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found if "." not in path.parts[-2])


def overview() -> str:
    """A page that lists all modules by folder, each with its first sentence."""
    lines = ["# Source", "", "Every module, as the site was built from it."]
    folder = ""
    for name in modules():
        if (own := posixpath.dirname(name)) != folder:
            folder = own
            lines += ["", f"## {folder}", "", "| module | what it is |", "|---|---|"]
        said = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""
        first = " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")
        lines.append(f"| [`{posixpath.basename(name)}`]({name}.md) | {first} |")
    return "\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every module, and one that lists them."""
    from mkdocs.structure.files import File

    for name in modules():
        text = (ROOT / name).read_text(encoding="utf-8").rstrip()
        content = SOURCE.format(name=name, text=text)
        files.append(File.generated(config, f"source/{name}.md", content=content))
    files.append(File.generated(config, "source/index.md", content=overview()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """PAPER.md, whose links start from the repository's root, and links to the source."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    if uri == "paper.md":
        markdown = (ROOT / "PAPER.md").read_text(encoding="utf-8").replace("](docs/", "](")
        page.meta["hide"] = ["toc"]  # its tables need the width
    known = set(modules())

    def link(match: re.Match[str]) -> str:
        name = match[1]
        first, _, rest = name.partition("/")
        for whole in (name, f"{SHORT[first]}/{rest}" if first in SHORT else name):
            if whole in known:
                return f"[`{name}`]({posixpath.relpath(f'source/{whole}.md', posixpath.dirname(uri) or '.')})"
        return match[0]

    # Neither in a block of code nor where it is a link already.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else re.sub(r"(?<!\[)`([\w/.-]+\.py)`", link, part) for part in parts
    )
