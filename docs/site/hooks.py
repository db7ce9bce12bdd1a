"""What the site needs beside docs/: README as its first page, the changelog, and words for links to files it lacks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie at the root of the repository."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        text = (
            (ROOT / source)
            .read_text(encoding="utf-8")
            .replace("](docs/", "](")
            .replace("](CHANGELOG.md", "](changelog.md")
        )
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Of a link to a file of the repository that is no page, leave the words, then its name."""
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)
