"""How Sphinx makes the site of the pages in this folder. `scripts/docs` runs it."""

from __future__ import annotations

from headrace._version import __version__

project = "headrace"
author = "the headrace authors"
version = release = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []
html_theme = "furo"
html_title = f"headrace {version}"
html_copy_source = False
html_show_sourcelink = False
html_static_path: list[str] = []

# `page.md#a-heading` is a link that must lead somewhere, down to the third level.
myst_heading_anchors = 3
myst_links_external_new_tab = True
# A link to a place that is not there is a warning, and scripts/docs makes warnings errors.
nitpicky = True
# Code blocks hold what people type, and figures of programs: none is a language that must parse.
suppress_warnings = ["misc.highlighting_failure"]
highlight_language = "none"
