"""Sphinx's settings of the course site; build.py makes what they read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from build import SITE, explorer, plain_docstring, repository

project = "minigrpo"
html_title = "GRPO is secretly a process reward model"
author = "the minigrpo contributors"
language = "en"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx-mathjax-offline"]
autodoc_typehints = "none"  # docstrings name shapes
napoleon_custom_sections = [("Source", "returns_style")]
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_ipywidgets_js = {}  # no page fetches a script from elsewhere
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": repository(),
    "repository_branch": "main",
    "use_repository_button": True,
    "use_issues_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
}
html_static_path = [str(SITE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_extra_path = [str(explorer())]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
