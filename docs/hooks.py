"""What the site needs beside the pages of docs/: those that stand elsewhere, where links to them lead."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
# Page of the site to file of the repository.
ELSEWHERE = {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md", "LICENSE": "LICENSE"} | {
    str(page.relative_to(ROOT)): str(page.relative_to(ROOT))
    for page in sorted([*ROOT.glob("results/*/README.md"), *ROOT.glob("results/*/*/table.md")])
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that stand elsewhere, and their pictures."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=translate(page, (ROOT / source).read_text())))
    for picture in sorted(ROOT.glob("results/*/*/*.png")):
        files.append(File.generated(config, str(picture.relative_to(ROOT)), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page, config: MkDocsConfig, files: Files) -> str:
    """Lets links out of docs/ lead to the pages that were added."""
    name = page.file.src_uri
    return markdown if name in ELSEWHERE else translate(f"docs/{name}", markdown)


def translate(source: str, markdown: str) -> str:
    """Returns a page with its links as they are on the site.

    Args:
        source: Where it stands in the repository, `index.md` for the README.
        markdown: Its text.
    """
    ups = "../" * (source.count("/") - source.startswith("docs/"))

    def at(link: re.Match) -> str:
        target = link[1]
        if "://" in target or target.startswith("#"):
            return link[0]
        path, hash_, heading = target.partition("#")
        parts: list[str] = []
        for part in [*source.split("/")[:-1], *path.split("/")]:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        place = "/".join(parts).removeprefix("docs/")
        return f"]({ups}{'index.md' if place == 'README.md' else place}{hash_}{heading})"

    return re.sub(r"\]\(([^)\s]+)\)", at, markdown)
