"""A drawing as SVG text that a page may hold: the same bytes for the same rows, and nothing that a page forbids.

No style sheet, script or style attribute is in it; ids start with the drawing's name, and ink is ``currentColor``, so
that a figure follows the page into the dark.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

from reports.figure_style import INK, Drawing, in_style

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


def svg(drawing: Drawing) -> str:
    """Return the drawing as an ``<svg>`` element."""
    text = io.StringIO()
    with in_style(drawing.name):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _without_styles(text.getvalue(), name=drawing.name, label=drawing.label)


def _without_styles(svg: str, *, name: str, label: str) -> str:
    """Turn style attributes into presentation attributes, and make every id the figure's own."""
    root = ElementTree.fromstring(svg)  # noqa: S314  (matplotlib wrote it a moment ago)
    for parent in root.iter():
        for sheet in [child for child in parent if child.tag == f"{{{_SVG}}}style"]:
            parent.remove(sheet)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.tail = None
        for declaration in element.attrib.pop("style", "").split(";"):
            key, _, value = declaration.partition(":")
            if key.strip() and key.strip() != "font-family":
                element.set(key.strip(), value.strip().replace(INK, "currentColor"))
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.attrib['id']}")
        if _HREF in element.attrib:
            element.set("href", f"#{name}-{element.attrib.pop(_HREF).removeprefix('#')}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
    root.attrib.update({"xmlns": _SVG, "role": "img", "aria-label": label, "font-family": "sans-serif"})
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})
    return ElementTree.tostring(root, encoding="unicode") + "\n"
