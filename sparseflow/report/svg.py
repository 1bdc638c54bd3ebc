"""matplotlib figures as inline SVG that takes its colours and fonts from the page, in light and in dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib wants real colours: these stand for the page's variables of the same name, which replace them.
_COLOURS = {
    name: f"#0{i}0{i}0{i}"
    for i, name in enumerate(("ink", "muted", "rule", "paper", "ticket", "dense", "reinit", "shuffle", "random"), 1)
}
INK, MUTED, RULE, PAPER = (_COLOURS[name] for name in ("ink", "muted", "rule", "paper"))
ARM_COLOURS = {name: _COLOURS[name] for name in ("ticket", "dense", "reinit", "shuffle", "random")}

# matplotlib types these keys with a list of its own, which no dict[str, ...] satisfies.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sparseflow",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}


@contextmanager
def blank_figure(width: float, height: float) -> Iterator["Figure"]:
    """A figure of `width` by `height` inches in the page's style, drawn and saved within the context."""
    # matplotlib takes a while to import, and most uses of the package draw nothing.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height))


def to_svg(figure: "Figure", label: str) -> str:
    """The figure as an `<svg>` element, `label` being its text for those who cannot see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index(">") + 1 :]
    for name, colour in _COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    used = set(re.findall(r"#([\w-]+)", body))
    # Several figures share a page, and matplotlib numbers the groups of each from one.
    body = re.sub(r' id="([\w-]+)"', lambda found: found[0] if found[1] in used else "", body)
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{label}">{body.strip()}'
