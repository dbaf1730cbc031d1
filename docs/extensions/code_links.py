"""Inline code: links to the reference, from `LIF()` or `methods.Step.loss` in any page, and words kept whole."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

PACKAGE = "lightning_snn"
_LONGEST_WORD = 32
_NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?", re.DOTALL)


def name_in(code: str) -> str | None:
    """Return the name that inline code refers to, or None if it may mean something else.

    A name is dotted, capitalized or called: a single lowercase word is more often an argument.

    Example:
        >>> name_in("LIF(beta=0.5)"), name_in("nn.unfold"), name_in("samples"), name_in("K = 4")
        ('LIF', 'nn.unfold', None, None)
    """
    found = _NAME.fullmatch(code)
    if found is None:
        return None
    name, called = found.groups()
    name = name.removeprefix(f"{PACKAGE}.")
    return name if called or "." in name or name[0].isupper() else None


def documented(env: BuildEnvironment) -> dict[str, tuple[str, str]]:
    """Return page and anchor of every object of the reference, by each end of its name: `nn.LIF` and `LIF`.

    Methods and attributes are found by their class at least. If two objects share a name, the first one has it.
    """
    found: dict[str, tuple[str, str]] = {}
    for full, entry in env.domains.python_domain.objects.items():
        parts = full.split(".")
        last = len(parts) - 1 if entry.objtype in ("method", "attribute", "property") else len(parts)
        for start in range(1, last):
            found.setdefault(".".join(parts[start:]), (entry.docname, entry.node_id))
    return found


class CodeLinks(SphinxPostTransform):
    """Turns inline code with the name of a documented object into a link."""

    default_priority = 5

    def run(self, **options: Any) -> None:
        """Add the links of a page."""
        objects = documented(self.env)
        for literal in list(self.document.findall(nodes.literal)):
            name = name_in(literal.astext())
            if name not in objects or _within(literal, nodes.reference, nodes.title):
                continue
            docname, anchor = objects[name]
            link = make_refnode(self.app.builder, self.env.docname, docname, anchor, literal.deepcopy(), name)
            literal.replace_self(link)


def has_short_words(code: str) -> bool:
    """Return whether every word of inline code fits into a line of a phone.

    Example:
        >>> has_short_words("--seeds 3"), has_short_words("lightning_snn.functional.eligibility.traces")
        (True, False)
    """
    return all(len(word) <= _LONGEST_WORD for word in code.split())


class ShortCode(SphinxPostTransform):
    """Gives inline code whose words fit into a line of a phone a class, so that the style can keep them whole."""

    default_priority = 6

    def run(self, **options: Any) -> None:
        """Mark the code of a page."""
        for literal in self.document.findall(nodes.literal):
            if has_short_words(literal.astext()):
                literal["classes"].append("short")


def link_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.reference | None:
    """Resolve a reference to an object that is documented under another path than that of its file."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    parent, _, last = target.rpartition(".")
    # a hook of Lightning that a class overrides has no entry of its own
    names = [last, parent.rpartition(".")[2]] if target.startswith(f"{PACKAGE}.") else [target, parent]
    objects = documented(env)
    page = next((objects[name] for name in names if name in objects), None)
    return None if page is None else make_refnode(app.builder, node["refdoc"], *page, content, target)


def _within(node: nodes.Node, *kinds: type[nodes.Node]) -> bool:
    while (node := node.parent) is not None:
        if isinstance(node, kinds):
            return True
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the links."""
    app.add_post_transform(CodeLinks)
    app.add_post_transform(ShortCode)
    app.connect("missing-reference", link_by_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
