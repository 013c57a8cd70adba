"""How Sphinx builds these pages: `make docs` writes them to site/."""

import re

from sphinx.application import Sphinx

project = "ELIP plugin"
html_title = project
language = "en"

extensions = ["myst_parser"]
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3  # links to headings, as on a git host

exclude_patterns = ["README.md", "results"]  # README.md is the start page, included by index.rst
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
pygments_style = "default"
html_static_path = ["_static"]
html_css_files = ["tables.css"]


def offer_as_files(app: Sphinx, page: str, text: list[str]) -> None:
    """Turn links to Markdown outside of docs/ into files of the site, which has no such pages."""
    text[0] = re.sub(r"\]\((\.\./[\w/]+\.md)(#[\w-]+)?\)", r"](path:\1)", text[0])


def setup(app: Sphinx) -> None:
    """Let Sphinx call `offer_as_files` for what it reads."""
    app.connect("source-read", offer_as_files)
