"""The table: for terminals, as markdown, and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from diarist.benchmark.cells import PUBLISHED, PUBLISHED_WITH
from diarist.benchmark.rounds import NOT_ASSISTED, PLAIN, Row, verdict

HEADS = (
    *("cell", "way", "seconds", "faster", "decoding faster", "decoder's share"),
    *("chose", "accepted", "tokens a pass", "same text", "published"),
)
_LEFT = ("cell", "way", "chose", "same text", "published")


def cells_of(row: Row) -> list[str]:
    """A row of the table, below `HEADS`."""
    told = row.assistance or {}
    drafting = row.way != PLAIN and bool(told) and told["assisted_passes"] > 0
    return [
        row.cell.title,
        NOT_ASSISTED if row.way == PLAIN else f"{row.way.assistant}, {'auto' if row.way.asked == 'auto' else 'always'}",
        f"{row.seconds:.3f}" if row.seconds < 1 else f"{row.seconds:.2f}",
        _ratio(row.faster),
        _ratio(row.decoding_faster),
        "" if row.decoder_share is None else f"{row.decoder_share:.0%}",
        f"{row.chosen} ({told['assisted_passes']:.0%})" if drafting else row.chosen if row.way != PLAIN else "",
        f"{told['acceptance_rate']:.0%}" if drafting else "",
        f"{told['tokens_per_pass']:.2f}" if told else "",
        "" if row.way == PLAIN else f"{row.words_differ} words differ" if row.words_differ else "yes",
        _published(row),
    ]


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
        "'chose' says what was done, and in how many passes of the decoder a draft was verified.",
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


def table(title: str, rows: Sequence[Row]) -> Table:
    """The table for a terminal: what pays is green, what does not is red."""
    made = Table(title=title, title_justify="left", header_style="bold", row_styles=None)
    for head in HEADS:
        made.add_column(head, justify="left" if head in _LEFT else "right")
    shown = ""
    for row in rows:
        cells = cells_of(row)
        if row.cell.title == shown:
            cells[0] = ""
        elif shown:
            made.add_section()
        shown = row.cell.title
        style = None if row.way == PLAIN else "green" if row.faster > 1 and row.pays else None if row.pays else "red"
        made.add_row(*cells, style=style)
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
