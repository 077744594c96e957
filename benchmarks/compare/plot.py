"""The results as a picture: a bar for each system's speed, its error rate beside it."""

import io
from collections.abc import Sequence
from typing import Any

from compare.protocol import WORKS
from compare.report import TITLES
from compare.results import MEASURE, OURS, Results, Row, rows

_WIDE = 20
"""Speeds further apart than this cannot be seen beside one another on a linear scale."""
_OURS, _THEIRS = "#2e7d32", "#90a4ae"


def png(results: Results) -> bytes:
    """One panel for each kind of work that anybody did; speeds have their spread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [(work, rows(results, work)) for work in WORKS]
    panels = [(work, measured) for work, measured in found if measured]
    heights = [len(measured) + 1 for _, measured in panels] or [1]
    figure = Figure(figsize=(10, 0.42 * sum(heights) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    places: Any = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for place, (work, measured) in zip(places[:, 0], panels, strict=False):
        _draw(place, measured, f"{TITLES[work]}: RTFx, and {MEASURE[work]}")
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=150)
    return written.getvalue()


def _draw(axes: Any, measured: Sequence[Row], title: str) -> None:
    speeds = [row.rtfx.middle for row in measured]
    below = [row.rtfx.middle - row.rtfx.low for row in measured]
    above = [row.rtfx.high - row.rtfx.middle for row in measured]
    colours = [_OURS if row.peer.name == OURS else _THEIRS for row in measured]
    places = range(len(measured))
    axes.barh(places, speeds, color=colours, xerr=(below, above), error_kw={"elinewidth": 1, "capsize": 2})
    for place, row in zip(places, measured, strict=True):
        rate = "" if row.percent is None else f", {row.percent:.1f} %"
        axes.annotate(
            f"{row.rtfx.middle:.3g}{rate}", (row.rtfx.high, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, [row.peer.title for row in measured])
    axes.invert_yaxis()
    most = max(row.rtfx.high for row in measured)
    if most > _WIDE * min(speeds):
        axes.set_xscale("log")
        axes.set_xlim(min(speeds) / 2, most * 4)  # room for the figures at the ends
        title += " (logarithmic scale)"
    else:
        axes.set_xlim(0, most * 1.2)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
