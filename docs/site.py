"""What the site needs beside the pages in docs/: the README is its home, and links out of docs/ become plain paths."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the home page, with its links as they are from within docs/."""
    with open("README.md", encoding="utf-8") as file:
        readme = file.read()
    inside = re.sub(r"\]\((?!https?:|#|docs/)", "](../", readme)
    files.append(File.generated(config, "index.md", content=inside.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Show what a link to a file outside of docs/ points at; the site does not hold it."""
    return OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)" if link[2] not in link[1] else link[1], markdown)
