"""Build the course site, offline: `make site`, or `python docs/site/build.py`; it lies in build/site/html.

No text is written twice. The pages of the repository, notebooks and Markdown, are copied to where they stand in it,
under build/site/source, with two changes: a link to what is no page of the site leads to the repository, and a figure's
words (`alt` of the cell) go where myst-nb looks for them. Sphinx does the rest, by conf.py; every warning is an error.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]
BUILD = ROOT / "build" / "site"
SOURCE, HTML = BUILD / "source", BUILD / "html"
PAGES = (
    *("lessons/*.ipynb", "labs/*.ipynb", "*.md", "docs/*.md"),
    *("benchmarks/*.md", "labs/gpu/**/*.md", "solutions/*.md"),
)
CODE = r"```.*?```|`[^`\n]*`"  # what stands in it is no link
LINK = re.compile(CODE + r"|\]\((?!https?:|mailto:|#)(?P<to>[^)\s#]+)(?P<part>#[^)\s]*)?\)", re.DOTALL)


def repository() -> str:
    """The address of the repository, which stands in pyproject.toml and nowhere else in the site."""
    found = re.search(r'^Repository = "(https://github\.com/[\w.-]+/[\w.-]+)"$', read(ROOT / "pyproject.toml"), re.M)
    if found is None:
        raise ValueError('pyproject.toml must have a line Repository = "https://github.com/OWNER/NAME"')
    return found[1]


def read(path: Path) -> str:
    """A text file."""
    return path.read_text(encoding="utf-8")


def pages() -> list[str]:
    """Every page, by its place in the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in PAGES for path in ROOT.glob(pattern))


def collect(source: Path) -> None:
    """Make the folder that Sphinx reads: the front page, every page, and the pictures."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "img", source / "docs" / "img")
    for front in SITE.glob("*.md"):
        shutil.copy(front, source)
    for name in pages():
        text, target = read(ROOT / name), source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(notebook(text, name) if name.endswith(".ipynb") else links(text, name), encoding="utf-8")


def notebook(text: str, name: str) -> str:
    """A notebook with its links turned, and its figures' words as myst-nb reads them."""
    found = json.loads(text)
    found["metadata"]["language_info"]["pygments_lexer"] = "ipython3"  # knows %pip and !git
    for cell in found["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = links("".join(cell["source"]), name)
        if alt := cell["metadata"].get("alt"):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return json.dumps(found, ensure_ascii=False)


def links(text: str, name: str) -> str:
    """Turn each link to a file that is neither a page nor a picture of the site into one to the repository."""
    kept = {*pages(), *(f"{page.stem}.md" for page in SITE.glob("*.md"))}

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link["to"] or ""))
        if link["to"] is None or target in kept or target.startswith("docs/img/"):
            return link[0]
        return f"]({repository()}/blob/main/{target}{link['part'] or ''})"

    return LINK.sub(turned, text)


def plain_docstring(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make a docstring of ours reStructuredText, in place: equations stand as they are, and nothing else is markup.

    An equation is what is indented under a sentence, before the first section of arguments.
    """
    made: list[str] = []
    before_sections = True
    for line in lines:
        before_sections = before_sections and not re.match(r"(Args|Returns|Yields|Raises|Source)\b.*:", line)
        if before_sections and line.startswith("    ") and not (made and made[-1].startswith("    ")):
            made += ["::", ""]  # a literal block, until a line that is not indented
        verbatim = before_sections and line.startswith("    ")
        made.append(line if verbatim else re.sub(r"`([^`]+)`|([|*\\])", _plain, line))
    lines[:] = made


def _plain(found: re.Match[str]) -> str:
    """Code in two backticks; a character that would be markup, escaped."""
    return f"``{found[1]}``" if found[1] else f"\\{found[2]}"


def explorer() -> Path:
    """Write the explorer of the worked example, a page of its own that explorer.md frames."""
    from minigrpo.paper import WORKED_EXAMPLE, WORKED_REWARDS
    from minigrpo.tree import ProcessTree

    page = ProcessTree([completion.split() for completion in WORKED_EXAMPLE], WORKED_REWARDS).to_html()
    path = BUILD / "tree.html"
    path.write_text(page, encoding="utf-8")
    return path


def main() -> int:
    """Build; return what Sphinx returns."""
    from sphinx.cmd.build import build_main  # the extra `site`; a test of the above does without

    collect(SOURCE)
    return build_main(["-W", "--keep-going", "-q", "-E", "-c", str(SITE), str(SOURCE), str(HTML)])


if __name__ == "__main__":
    sys.exit(main())
