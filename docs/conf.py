"""Settings of the documentation: `sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "extensions"), str(HERE.parent)]

import pictures  # noqa: E402

from lightning_snn import __version__  # noqa: E402

project = "lightning_snn"
author = "the authors of lightning_snn"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "code_links",
    "page_links",
    "repository_links",
]
exclude_patterns = ["_build", "_pictures", "extensions"]
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types of other packages in signatures

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 4

default_role = "code"  # docstrings mark code with single backticks
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # a class as a default by its name, as the source has it
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Source"]
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"lightning_snn {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False


_COLON = "\ue000"  # napoleon would take what is before a colon for the type of a property


def hide_colon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Hide colons in the first paragraph of the docstring of a property from napoleon."""
    if what == "property":
        first = lines.index("") if "" in lines else len(lines)
        lines[:first] = [line.replace(":", _COLON) for line in lines[:first]]


def show_colon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Restore them."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def setup(app: Sphinx) -> None:
    """Make the pictures before pages are read."""
    app.connect("builder-inited", lambda app: pictures.make_all(HERE / "_pictures"))
    app.connect("autodoc-process-docstring", hide_colon, priority=400)
    app.connect("autodoc-process-docstring", show_colon, priority=600)
