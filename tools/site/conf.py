"""Sphinx's settings for the site; `make site` names this folder, the sources are made by sources.py."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import sources  # noqa: E402

_settings = sources.settings()
project = _settings["title"]
author = _settings["author"]
copyright = _settings["copyright"]
release = version = _settings["version"]
language = "en"

extensions = ["myst_nb", "extension"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "fieldlist", "html_image"]
myst_heading_anchors = 4
myst_update_mathjax = False
html_math_renderer = "local"
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 84
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = project
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_search_summary = False  # it asks for pages, which a browser refuses a folder's file; site.js shows promises
html_search_scorer = str(HERE / "static" / "scorer.js")
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7db4ef", "color-brand-content": "#7db4ef"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
