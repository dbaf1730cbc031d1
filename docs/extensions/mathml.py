"""Equations as MathML, which browsers show without a script and without a network."""

from __future__ import annotations

import html
import re

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

_LINES = re.compile(r"\\\\|&")
_ENVIRONMENT = re.compile(r"\\begin{")


def mathml(tex: str, display: bool) -> str:
    r"""Return MathML of an equation.

    Args:
        tex: LaTeX. Several lines, divided by ``\\``, are aligned at ``&``, in an environment `aligned` or without one.
        display: whether it stands on lines of its own.

    Raises:
        ValueError: if the converter left a command of LaTeX as it was.
    """
    tex = tex.strip().replace("{aligned}", "{align*}")  # the first is that of GitHub, the second that of the converter
    if display and _LINES.search(tex) and not _ENVIRONMENT.search(tex):
        tex = rf"\begin{{align*}}{tex}\end{{align*}}"
    found = latex2mathml.converter.convert(tex, display="block" if display else "inline")
    text = html.unescape(re.sub(r"<[^>]*>", "", found))
    if "\\" in text or "<mi>&</mi>" in found:
        raise ValueError(f"Expected LaTeX that latex2mathml knows, but got {tex}")
    return found


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write an equation within a line."""
    self.body.append(f'<span class="math">{mathml(node.astext(), display=False)}</span>')
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write an equation on lines of its own, which scrolls where it is wider than the page."""
    self.body.append(f'<div class="math">{mathml(node.astext(), display=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer `mathml`."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
