"""What a comparison found, its file, and the figures that are drawn from it."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from compare.protocol import Work

OURS = "diarist"
Measure = Literal["WER", "DER", "cpWER"]
MEASURE: dict[Work, Measure] = {"recognition": "WER", "diarization": "DER", "whole": "cpWER"}


@dataclass(frozen=True, slots=True)
class Run:
    """One recording heard once."""

    work: Work
    recording: str
    round: int
    seconds: float
    peak_bytes: int | None
    """None where this work was a part of a larger one, whose peak is known only."""


@dataclass(frozen=True, slots=True)
class Score:
    """Wrong words or seconds, of how many."""

    measure: Measure
    recording: str
    wrong: float
    total: float


@dataclass(slots=True)
class PeerResults:
    """All that is known of one peer; grows while it is measured."""

    name: str
    title: str
    settings: str
    versions: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    """Why it was not measured, or not to the end."""
    runs: list[Run] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    clip_s: list[float] = field(default_factory=list)
    """Of each repetition: seconds for the short clip, warm."""
    start_s: list[float] = field(default_factory=list)
    """Of each repetition: seconds from the start of its process to the text of the short clip."""


@dataclass(slots=True)
class Results:
    """A comparison."""

    date: str
    hardware: dict[str, str]
    threads: int
    durations: dict[str, float]
    """Seconds of each recording."""
    clip_s: float
    """Length of the short clip."""
    peers: list[PeerResults]

    def peer(self, name: str) -> PeerResults | None:
        return next((peer for peer in self.peers if peer.name == name), None)


def save(results: Results, path: Path) -> None:
    """Write the file in one step, so that an interrupted comparison leaves the last whole one."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    unfinished.rename(path)


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    peers = [
        PeerResults(
            **{
                **peer,
                "runs": [Run(**run) for run in peer["runs"]],
                "scores": [Score(**score) for score in peer["scores"]],
            }
        )
        for peer in table["peers"]
    ]
    return Results(**{**table, "peers": peers})


# --- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One peer at one kind of work, all recordings together."""

    peer: PeerResults
    rtfx: Spread
    """Seconds of audio per second of work, over the rounds."""
    rounds: int
    slower: float | None
    """How many times diarist's time it took: the median of the ratios within each round. None for diarist."""
    percent: float | None
    """Its error rate."""
    peak_bytes: int | None


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def rows(results: Results, work: Work) -> list[Row]:
    """Peers that did this work in at least one whole round, diarist first, then the fastest."""
    ours = results.peer(OURS)
    baseline = totals(results, ours, work) if ours else {}
    found = []
    for peer in results.peers:
        seconds = totals(results, peer, work)
        if not seconds:
            continue
        together = sum(results.durations.values())
        shared = [seconds[number] / baseline[number] for number in seconds if number in baseline]
        peaks = [run.peak_bytes for run in peer.runs if run.work == work and run.peak_bytes is not None]
        found.append(
            Row(
                peer=peer,
                rtfx=spread([together / total for total in seconds.values()]),
                rounds=len(seconds),
                slower=statistics.median(shared) if shared and peer is not ours else None,
                percent=error_percent(peer, MEASURE[work]),
                peak_bytes=max(peaks, default=None),
            )
        )
    return sorted(found, key=lambda row: (row.peer is not ours, -row.rtfx.middle))


def totals(results: Results, peer: PeerResults, work: Work) -> dict[int, float]:
    """Seconds for all recordings together, of each round in which it heard them all."""
    rounds: dict[int, dict[str, float]] = defaultdict(dict)
    for run in peer.runs:
        if run.work == work:
            rounds[run.round][run.recording] = run.seconds
    return {number: sum(each.values()) for number, each in rounds.items() if each.keys() == results.durations.keys()}


def error_percent(peer: PeerResults, measure: Measure) -> float | None:
    scores = [score for score in peer.scores if score.measure == measure]
    total = sum(score.total for score in scores)
    return 100 * sum(score.wrong for score in scores) / total if total else None


def repeated_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Median over the repetitions that both did, of how many times our time they took."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=False)]
    return statistics.median(ratios) if ratios else None
