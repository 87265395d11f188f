"""Figures as SVG that lies inside a page: small, readable aloud, in the page's own colours.

Enters: a drawing on a matplotlib figure. Leaves: an `<svg>` element as text, with a title and a
description, without ids that could clash, its colours taken from the page's CSS variables.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn in these, which stand for the page's colours, light or dark.
TEXT, LINE, BEFORE, AFTER = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {
    TEXT: "var(--text)",
    LINE: "var(--line)",
    BEFORE: "var(--before)",
    AFTER: "var(--after)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are the user's, and a $ in them is a $
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font-family: [^;\"]+|(font: [^'\"]*?px) [^;\"]+")

Draw = Callable[[list[Axes]], None]


def drawn(
    name: str, title: str, description: str, draw: Draw, *, height: float, rows: tuple[int, ...]
) -> str:
    """The SVG of `draw(axes)`: axes above each other, with heights in proportion to `rows`.

    name: unique in the page, [a-z]+. height: in inches, of 7 across.
    """
    with rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser's own fonts show what matplotlib's lack; it only takes their widths.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(7, height), layout="constrained")
        axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)
        draw([*axes[:, 0]])
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _embedded(out.getvalue(), name, title, description)


def _embedded(text: str, name: str, title: str, description: str) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(text)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    _rename_ids(root, name)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (tag, content) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}")
        element.set("id", f"{name}-{'title' if tag == 'title' else 'description'}")
        element.text = content
        root.insert(place, element)
    _adopt_the_page(root)
    return ElementTree.tostring(root, encoding="unicode")


def _adopt_the_page(root: ElementTree.Element) -> None:
    """Its colours and fonts; in attributes alone, since a text may be the name of a layer."""
    for element in root.iter():
        for key, value in element.attrib.items():
            own = value
            for colour, variable in _VARIABLES.items():
                own = own.replace(colour, variable)
            if key == "style":
                own = _FONT.sub(lambda match: f"{match[1]} inherit" if match[1] else "", own)
            element.set(key, own)


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Ids that something refers to get the figure's name before them; others go."""
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used |= set(re.findall(r"url\(#([^)]+)\)", value))
        if _XLINK in element.attrib:
            used.add(element.attrib[_XLINK].removeprefix("#"))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        for key, value in list(element.attrib.items()):
            if key == _XLINK:
                element.set(key, f"#{name}-{value.removeprefix('#')}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
