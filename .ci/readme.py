"""Print the code blocks of one language from Markdown files, in order: CI runs what the documentation tells
readers to run.

python .ci/readme.py bash README.md
"""

import re
import sys
from pathlib import Path


def blocks(text: str, language: str) -> list[str]:
    """Return the bodies of all fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


if __name__ == "__main__":
    language, *files = sys.argv[1:]
    for file in files:
        for block in blocks(Path(file).read_text(), language):
            print(f"# {file}\n{block}")
