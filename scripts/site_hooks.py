"""What the documentation site changes in pages that are read elsewhere, too."""

from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """PAPER.md, whose links start from the repository's root, as a page of docs/."""
    if page.file.src_uri != "paper.md":
        return markdown
    return Path("PAPER.md").read_text(encoding="utf-8").replace("](docs/", "](")
