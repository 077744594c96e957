"""The table: for terminals, as markdown, and as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from diarist.benchmark.cells import PUBLISHED, PUBLISHED_WITH
from diarist.benchmark.rounds import NOT_ASSISTED, PLAIN, Row, verdict

HEADS = (
    *("cell", "way", "seconds", "faster", "decoding faster", "decoder's share"),
    *("assisted", "accepted", "tokens a pass", "same text", "published"),
)
_LEFT = ("cell", "way", "same text", "published")
_ONLY_WHERE_WIDE = ("decoding faster", "decoder's share", "accepted", "tokens a pass")
_WIDE = 140  # columns of a terminal that hold the whole table


def cells_of(row: Row) -> list[str]:
    """A row of the table, below `HEADS`."""
    told = row.assistance or {}
    drafting = bool(told) and told["assisted_passes"] > 0
    return [
        row.cell.title,
        _way(row),
        f"{row.seconds:.3f}" if row.seconds < 1 else f"{row.seconds:.2f}",
        _ratio(row.faster),
        _ratio(row.decoding_faster),
        "" if row.decoder_share is None else f"{row.decoder_share:.0%}",
        "" if row.way == PLAIN or not told else f"{told['assisted_passes']:.0%}" if drafting else "no",
        f"{told['acceptance_rate']:.0%}" if drafting else "",
        f"{told['tokens_per_pass']:.2f}" if told else "",
        "" if row.way == PLAIN else f"{row.words_differ} differ" if row.words_differ else "yes",
        _published(row),
    ]


def _way(row: Row) -> str:
    """Who drafts, a path by its last part, and when."""
    if row.way == PLAIN:
        return NOT_ASSISTED
    return f"{PurePath(row.way.assistant).name}, {'auto' if row.way.asked == 'auto' else 'always'}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _published(row: Row) -> str:
    """The original's figure for such a cell: seconds, and how much faster that is than not assisted."""
    if row.cell.name not in PUBLISHED or row.way.asked == "auto":
        return ""
    plain, assisted = PUBLISHED[row.cell.name]
    return f"{assisted:.3g} s, {plain / assisted:.2f}x" if row.way.asked else f"{plain:.3g} s"


def notes(rows: Sequence[Row], rounds: int) -> list[str]:
    """What the reader of the table should know."""
    times = "One round" if rounds == 1 else f"Medians of {rounds} rounds"
    found = [
        f"{times}; 'faster' is than not assisted in the same round. 'decoding' leaves out the encoder.",
        "'assisted' is the share of the decoder's passes that verified a draft; 'accepted' that of drafted tokens.",
        f"Published by the original: {PUBLISHED_WITH}.",
        *(f"{sentence}." for sentence in verdict(rows)),
    ]
    repeated = list(dict.fromkeys(row.cell.name for row in rows if row.cell.repeats))
    if repeated:
        found.append(
            f"The recording is too short for {' and '.join(repeated)} and begins again: n-gram drafts look too good there."
        )
    if any(row.words_differ for row in rows):
        found.append("In float32 no word differs; below, where two tokens are equally likely, rounding decides.")
    return found


def markdown(title: str, rows: Sequence[Row], rounds: int) -> str:
    """The table with its title and notes."""
    marks = ["---" if head in _LEFT else "---:" for head in HEADS]
    lines = [HEADS, marks, *map(cells_of, rows)]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines), "", *notes(rows, rounds)])


def table(title: str, rows: Sequence[Row], width: int) -> Table:
    """The table for a terminal of so many columns: what pays is green, what does not is red."""
    shown = [head for head in HEADS[1:] if width >= _WIDE or head not in _ONLY_WHERE_WIDE]
    made = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    made.add_column("", no_wrap=True)
    for head in shown[1:]:
        made.add_column(head, justify="left" if head in _LEFT else "right", no_wrap=True)
    last = ""
    for row in rows:
        cells = dict(zip(HEADS, cells_of(row), strict=True))
        if cells["cell"] != last:
            made.add_section()
            made.add_row(Text(cells["cell"], "bold"))
        last = cells["cell"]
        style = None if row.way == PLAIN else "red" if not row.pays else "green" if row.faster > 1 else None
        made.add_row(Text(f"  {cells['way']}"), *(Text(cells[head]) for head in shown[1:]), style=style)
    return made


def document(description: Mapping[str, Any], rows: Sequence[Row], rounds: int) -> dict[str, Any]:
    """Everything that was measured, as plain values."""
    return {
        "subject": dict(description),
        "rounds": rounds,
        "published": {"with": PUBLISHED_WITH, "seconds": {name: list(both) for name, both in PUBLISHED.items()}},
        "verdict": verdict(rows),
        "cells": [
            {
                "cell": row.cell.name,
                "requests": len(row.cell.sounds),
                "audio_s": row.cell.seconds,
                "repeats": row.cell.repeats,
                "assistant": row.way.assistant or None,
                "asked": row.way.asked,
                "seconds": row.seconds,
                "faster": row.faster,
                "decoding_faster": row.decoding_faster,
                "decoder_share": row.decoder_share,
                "assistance": row.assistance and dict(row.assistance),
                "words_differ": row.words_differ,
            }
            for row in rows
        ],
    }
