"""What the site needs beside the pages in docs/: the README as its home, the notebook, and a reference of every module.

Links out of docs/ become plain paths.
"""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the notebook and the reference, and list the latter's pages in the navigation."""
    files.append(File.generated(config, "index.md", content=home()))
    files.append(File.generated(config, "quick_start.md", content=notebook(Path("docs/quick_start.ipynb"))))
    pages = reference(Path("mmnetaug"))
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    config.nav.append({"Reference": list(pages)})
    return files


def home() -> str:
    """The README, with its links as they are from within docs/."""
    with open("README.md", encoding="utf-8") as file:
        readme = file.read()
    inside = re.sub(r"\]\((?!https?:|#|docs/)", "](../", readme)
    return inside.replace("](docs/", "](")


def notebook(path: Path) -> str:
    """A notebook, which holds no outputs, as Markdown."""
    title, *cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(title["source"]), f"This page is a notebook: [{path.name}]({path.name})."]
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def reference(package: Path) -> dict[str, str]:
    """A page for the package itself and one for each subpackage, with all of their modules: path -> Markdown."""
    pages: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        names = [package.name, *path.relative_to(package).with_suffix("").parts]
        if names[-1] == "__init__":
            del names[-1]
        if any(name.startswith("_") for name in names):
            continue
        page = ".".join(names[:2] if package.joinpath(*names[1:2]).is_dir() else names[:1])
        pages.setdefault(f"reference/{page}.md", [f"# {page}"]).append(f"::: {'.'.join(names)}")
    return {path: "\n\n".join(lines) + "\n" for path, lines in sorted(pages.items())}


def on_page_markdown(markdown: str, **_) -> str:
    """Show what a link to a file outside of docs/ points at; the site does not hold it."""
    return OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)" if link[2] not in link[1] else link[1], markdown)
