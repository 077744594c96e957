"""The results as tables: Markdown for people and the README, and a page that needs nothing beside it."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from compare.protocol import WORKS, Work
from compare.results import OURS, PeerResults, Results, Row, Spread, repeated_ratio, rows, spread

TITLES: dict[Work, str] = {
    "recognition": "Recognition",
    "diarization": "Diarization",
    "whole": "Who said what: recognition and diarization",
}
_UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, the first column left-aligned."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def markdown(results: Results) -> str:
    """The whole report."""
    return "\n\n".join([*_tables_and_absent(results), _prose(results), _markdown_table(versions(results))]) + "\n"


def readme_markdown(results: Results) -> str:
    """What the README shows: the tables, and on what and when they were measured."""
    return "\n\n".join([*_tables_and_absent(results), _prose(results)]) + "\n"


def page(results: Results, plot: bytes) -> str:
    """One HTML file with the plot inside.

    Args:
        results: What to show.
        plot: PNG.
    """
    shown = [*tables(results), *absent(results), versions(results)]
    image = base64.b64encode(plot).decode()
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>diarist and its peers</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0; width: 100% }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }}
th:first-child, td:first-child {{ text-align: left }}
tr.ours {{ font-weight: 600; background: #eef5ee }}
img {{ max-width: 100% }}
small {{ color: #666; font-weight: normal }}
</style>
<h1>diarist and its peers</h1>
<p>{escape(_prose(results))}</p>
<img src="data:image/png;base64,{image}" alt="Speed and error rate of each system">
{"".join(_html_table(table) for table in shown)}
</html>
"""


# --- tables ---------------------------------------------------------------------------------------------------------


def tables(results: Results) -> list[Table]:
    """One for each kind of work that anybody did."""
    found = [(work, rows(results, work)) for work in WORKS]
    return [_table(results, work, measured) for work, measured in found if measured]


def _table(results: Results, work: Work, measured: Sequence[Row]) -> Table:
    rate = {"recognition": "WER %", "diarization": "DER %", "whole": "cpWER %"}[work]
    head = ["system", "RTFx (lowest – highest)", "diarist is faster", rate, "peak memory, MB"]
    if work == "recognition":
        head += [f"{results.clip_s:.0f} s clip, warm, s", "faster", "start to first text, s", "faster"]
    ours = results.peer(OURS)
    lines = tuple(tuple(_cells(row, ours, work)) for row in measured)
    return Table(TITLES[work], tuple(head), lines)


def _cells(row: Row, ours: PeerResults | None, work: Work) -> Iterator[str]:
    yield _name(row.peer)
    yield _spread(row.rtfx, 1)
    yield _times(row.slower)
    yield _number(row.percent, 2)
    yield _number(None if row.peak_bytes is None else row.peak_bytes / 1e6, 0)
    if work == "recognition":
        other = None if row.peer is ours else ours
        yield from _timed(row.peer.clip_s, other.clip_s if other else (), 3)
        yield from _timed(row.peer.start_s, other.start_s if other else (), 2)


def absent(results: Results) -> list[Table]:
    """Peers with a reason why figures of theirs are missing; no table if there are none."""
    lines = tuple((_name(peer), peer.failure) for peer in results.peers if peer.failure is not None)
    return [Table("Not measured, or not to the end", ("system", "reason"), lines)] if lines else []


def versions(results: Results) -> Table:
    lines = tuple(
        (peer.title, peer.settings, ", ".join(f"{package} {version}" for package, version in peer.versions.items()))
        for peer in results.peers
    )
    return Table("Versions and settings", ("system", "settings", "versions"), lines)


def _name(peer: PeerResults) -> str:
    return f"{peer.title} ({peer.settings})" if peer.name != OURS else peer.title


def _timed(seconds: Sequence[float], ours: Sequence[float], digits: int) -> tuple[str, str]:
    """A time with its spread, and how much faster ours was."""
    return _spread(spread(seconds), digits) if seconds else _UNKNOWN, _times(repeated_ratio(ours, seconds))


def _spread(values: Spread, digits: int) -> str:
    return f"{values.middle:.{digits}f} ({values.low:.{digits}f} – {values.high:.{digits}f})"


def _times(ratio: float | None) -> str:
    return _UNKNOWN if ratio is None else f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def _number(value: float | None, digits: int) -> str:
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


def _prose(results: Results) -> str:
    """On what all this was measured, in words."""
    recordings = ", ".join(f"{name} ({seconds / 60:.1f} min)" for name, seconds in results.durations.items())
    rounds = max((row.rounds for work in WORKS for row in rows(results, work)), default=0)
    hardware = "; ".join(f"{name}: {value}" for name, value in results.hardware.items())
    return (
        f"Whisper base for all, from the same weights; English given, greedy; {results.threads} threads. "
        f"Recordings: {recordings}. RTFx is seconds of audio per second of work, reading the file included: the median "
        f"over up to {rounds} rounds, in each of which all take turns on each recording. “Faster” is the median of the "
        f"ratios within rounds. WER and cpWER after Whisper's English normalizer; DER without collar, overlap scored. "
        f"Measured on {results.date}: {hardware}."
    )


# --- forms ----------------------------------------------------------------------------------------------------------


def _tables_and_absent(results: Results) -> list[str]:
    return [_markdown_table(table) for table in (*tables(results), *absent(results))]


def _markdown_table(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    rule = ["---", *["---:"] * (len(table.head) - 1)]
    return "\n".join([f"**{table.title}**", "", line(table.head), line(rule), *map(line, table.lines)])


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    body = "".join(map(_html_line, table.lines))
    return f"<h2>{escape(table.title)}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n"


def _html_line(line: Sequence[str]) -> str:
    start = '<tr class="ours">' if line[0] == OURS else "<tr>"
    return f"{start}{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>\n"
