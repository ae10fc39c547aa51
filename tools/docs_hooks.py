"""Hooks of MkDocs: the site also has the README files and the sources that its pages link to.

In the repository a page of docs/ links to `../rl/train.py` or `../examples/quickstart/README.md`. MkDocs knows only the
files of docs/, so these hooks add what is linked (Markdown files and images as they are, sources as pages with their
text) and turn the links accordingly.

Source: MkDocs' developer guide, "Events".
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml"}
OUTSIDE = ("README.md", "CHANGELOG.md", "rl/README.md", "examples/*/README.md")
"""Pages of the navigation that are not in docs/; README.md is the start page."""
DECISIONS = "decisions/index.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs/: pages of the navigation, and whatever a page links to."""
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages()]
    waiting += [path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]
    files.append(File.generated(config, DECISIONS, content=_list_of_decisions()))
    while waiting:
        path = waiting.pop()
        uri = _site_uri(path)
        if uri not in files.src_uris:
            file = _file(path, uri, config)
            files.append(file)
        if path.suffix == ".md" or path.is_dir():
            waiting += [target for target in _targets(path) if _site_uri(target) not in files.src_uris]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    del config, files
    path = _path(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        return match[1] if target is None else _relative(_site_uri(target), page.file.src_uri)

    return LINK.sub(turned, markdown)


def _file(path: Path, uri: str, config: MkDocsConfig) -> File:
    if path.is_dir():
        return File.generated(config, uri, content=_list_of_files(path))
    if path.suffix in (".md", ".png", ".svg"):
        return File.generated(config, uri, abs_src_path=str(path))
    language, fence = LANGUAGES.get(path.suffix, "text"), "~~~~~~"
    code = f"{fence}{language}\n{path.read_text().rstrip()}\n{fence}\n"
    text = f"---\nsearch: {{exclude: true}}\n---\n# {path.relative_to(ROOT)}\n\n{code}"
    return File.generated(config, uri, content=text)


def _targets(path: Path) -> list[Path]:
    """Files of the repository that a page links to."""
    text = _list_of_files(path) if path.is_dir() else path.read_text()
    return [target for link in LINK.findall(text) if (target := _target(path, link)) is not None]


def _target(path: Path, link: str) -> Path | None:
    """The file that a link on a page leads to; None for an address, and for what is no link."""
    folder = path if path.is_dir() else path.parent
    target = Path(os.path.normpath(folder / link))
    return target if "://" not in link and target.is_relative_to(ROOT) and target.exists() else None


def _site_uri(path: Path) -> str:
    """Where a file of the repository is on the site."""
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    if name == "docs/decisions":
        return DECISIONS
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if path.is_dir():
        return f"source/{name}/index.md"
    return name if path.suffix in (".md", ".png", ".svg") else f"source/{name}.md"


def _path(uri: str) -> Path:
    """The file of the repository that a page of the site shows."""
    if uri == "index.md":
        return ROOT / "README.md"
    if uri == DECISIONS:
        return ROOT / "docs" / "decisions"
    if uri.startswith("source/"):
        return ROOT / uri.removeprefix("source/").removesuffix(".md").removesuffix("/index")
    return ROOT / "docs" / uri if (ROOT / "docs" / uri).exists() else ROOT / uri


def _relative(uri: str, page: str) -> str:
    return os.path.relpath(uri, os.path.dirname(page) or ".")


def _list_of_files(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in LANGUAGES or path.suffix == ".md")
    return f"# {folder.relative_to(ROOT)}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)


def _list_of_decisions() -> str:
    """Every decision with its title, the first line of its file."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [(path.name, path.read_text().split("\n", 1)[0].removeprefix("# ")) for path in pages]
    return "# Decisions\n\nWhy things are as they are.\n\n" + "".join(
        f"- [{title}]({name})\n" for name, title in titles
    )
