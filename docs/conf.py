"""How Sphinx builds these pages: `make docs` writes them to site/."""

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
