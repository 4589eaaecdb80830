"""The docs site: `make docs`. The book's sources stay where they are; this folder holds what joins them.

Everything that a page needs is in the build: it works from disk, with no network.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "refimpl")]

project = "inference-opt"
author = "the authors of inference-opt"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "markers", "excerpts"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/api/*.md", "docs/proofs/README.md", "chapters/*.md", "notebooks/*.ipynb"]
exclude_patterns = ["build", ".venv", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "inference-opt"
html_show_copyright = False
html_show_sourcelink = html_copy_source = False
html_search_scorer = str(HERE / "search.js")
templates_path = ["_templates"]
html_extra_path = ["first"]  # index.html, which leads to docs/index.html
html_css_files = ["book.css"]
html_theme_options = {"navigation_with_keys": False}  # the arrows belong to the players
# MathJax as one file, out of a wheel: no fonts, nothing loaded later.
(mathjax,) = find_spec("sphinx-mathjax-offline").submodule_search_locations
html_static_path = ["_static", f"{mathjax}/static/mathjax/tex-svg-full.js"]
mathjax_path = "tex-svg-full.js"

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # they would come from a CDN; the players show what the controls show
suppress_warnings = ["mystnb.unknown_mime_type"]  # of a widget its text is shown

autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints = "signature"
viewcode_follow_imported_members = False
autodoc_preserve_defaults = True
