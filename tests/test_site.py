"""The course site: what it collects (quick), and the pages that it becomes (marked `site`, after `make site`)."""

import importlib.util
import json
import re
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLUG = re.compile(r"(?:github\.com|githubusercontent\.com|colab\.research\.google\.com/github)/([\w.-]+/[\w-]+)")


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "site" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_slug_is_one_everywhere(build):
    """Of this repository, wherever an address of it stands; other repositories have other names."""
    slug = build.repository().removeprefix("https://github.com/")
    places = [ROOT / "CITATION.cff", *(ROOT / "docs" / "site").glob("*.*"), *(ROOT / "solutions").glob("*.py")]
    places += [ROOT / name for name in build.pages()]
    found = {
        (path.name, other)
        for path in places
        for other in SLUG.findall(path.read_text(encoding="utf-8"))
        if other.endswith(f"/{slug.partition('/')[2]}")
    }
    assert {other for _, other in found} == {slug}, found
    assert len(found) > 2


def test_links_to_what_is_no_page_lead_to_the_repository(build):
    text = "[a](../docs/results.md#e) [b](../minigrpo/steps.py) [c](https://x.org) [d](#e) ![f](../docs/img/g.png)"
    expected = text.replace("../minigrpo/steps.py", f"{build.repository()}/blob/main/minigrpo/steps.py")
    assert build.links(text, "lessons/02_process_steps.ipynb") == expected
    code = "`[a](b)` and\n```python\nways[way](model)\n```\n"
    assert build.links(f"{code}[`b`](LICENSE)", "README.md") == f"{code}[`b`]({build.repository()}/blob/main/LICENSE)"
    assert build.links("[a](LICENSE)", "README.md") == f"[a]({build.repository()}/blob/main/LICENSE)"
    assert build.links("[a](explorer.md)", "index.md") == "[a](explorer.md)"  # a page of the site alone


def test_words_of_a_figure_go_where_the_generator_looks(build):
    cells = [
        {"cell_type": "code", "metadata": {"alt": "A tree."}, "source": [], "outputs": []},
        {"cell_type": "code", "metadata": {}, "source": [], "outputs": []},
        {"cell_type": "markdown", "metadata": {}, "source": ["See [x](../Makefile)\n", "and more"]},
    ]
    given = json.dumps({"metadata": {"language_info": {}}, "cells": cells})
    with_words, without, prose = json.loads(build.notebook(given, "lessons/01.ipynb"))["cells"]
    assert with_words["metadata"]["mystnb"] == {"image": {"alt": "A tree."}}
    assert without["metadata"] == {}
    assert prose["source"] == f"See [x]({build.repository()}/blob/main/Makefile)\nand more"


def test_collects_every_page_and_no_second_text(build, tmp_path):
    build.collect(tmp_path)
    own = {path.name for path in build.SITE.glob("*.md")}
    collected = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert collected == {*build.pages(), *own, *(f"docs/img/{path.name}" for path in (ROOT / "docs/img").iterdir())}
    assert {"README.md", "docs/results.md", "lessons/09_language_models.ipynb"} <= collected
    for name in own:
        for line in build.read(build.SITE / name).splitlines():
            sentence = line.strip("* |")
            assert len(sentence) < 60 or all(sentence not in build.read(ROOT / page) for page in build.pages()), line


# ---------------------------------------------------------------------------------------------------------------------
# The pages that `make site` made
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def html(build):
    assert build.HTML.is_dir(), "make site makes what this test looks at"
    return build.HTML


@pytest.mark.site
def test_every_page_is_there_and_the_search_knows_it(build, html):
    index = (html / "searchindex.js").read_text(encoding="utf-8")
    for name in build.pages():
        stem = name.rpartition(".")[0]
        assert (html / f"{stem}.html").is_file(), name
        assert f'"{stem}"' in index, name


@pytest.mark.site
def test_every_figure_of_a_notebook_has_its_words(build, html):
    seen = 0
    for name in build.pages():
        if not name.endswith(".ipynb"):
            continue
        cells = json.loads(build.read(ROOT / name))["cells"]
        # a lab comes without outputs, and so without figures
        alts = [cell["metadata"]["alt"] for cell in cells if "alt" in cell["metadata"] and cell["outputs"]]
        page = (html / name.replace(".ipynb", ".html")).read_text(encoding="utf-8")
        shown = [re.search(r'alt="([^"]*)"', tag)[1] for tag in re.findall(r"<img[^>]*_images/[^>]*>", page)]
        assert list(map(unescape, shown)) == alts, name
        seen += len(alts)
    assert seen > 5


@pytest.mark.site
def test_pages_fetch_nothing_from_elsewhere(html):
    """Scripts, styles and pictures are the site's own, so that it reads offline, formulas too."""
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(https?:[^"]*)"', text)
        assert fetched == [], page


@pytest.mark.site
def test_lessons_open_in_colab(build, html):
    slug = build.repository().removeprefix("https://github.com/")
    page = (html / "lessons" / "09_language_models.html").read_text(encoding="utf-8")
    assert f'"https://colab.research.google.com/github/{slug}/blob/main/lessons/09_language_models.ipynb"' in page


@pytest.mark.site
def test_the_explorer_is_framed(html):
    assert 'src="tree.html"' in (html / "explorer.html").read_text(encoding="utf-8")
    assert "JKL" in re.sub(r'[\s",]', "", (html / "tree.html").read_text(encoding="utf-8"))
