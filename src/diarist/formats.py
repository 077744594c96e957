"""The written forms of a transcript, and the only place where text is escaped for one.

Words come from a model and names from files: neither may end a subtitle, start a column or write a line of its own.
Every form therefore takes text through `one_line` first; what a form has its own marks for is escaped where it has an
escape (WebVTT, JSON) and replaced by a look-alike where it has none (SubRip, STM).

| format | one record | speakers |
|---|---|---|
| txt | an utterance, one line | `[00:00:06] SPEAKER_00: text`; the bare text without diarization |
| srt, vtt | a cue of at most two lines | `SPEAKER_00: text` where there are several; voice tags |
| json | the whole transcript | as in `Transcript.to_dict` |
| tsv | an utterance | columns start, end (milliseconds), speaker, text |
| rttm | a turn | NIST Rich Transcription Time Marked, for diarization scoring |
| stm | an utterance | NIST segment time mark, for cpWER and WER scoring |
"""

import html
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from diarist.errors import OptionError
from diarist.timeline import ends_sentence
from diarist.transcript import Transcript, Utterance

LINE_COLUMNS = 42
"""Longest line of a subtitle, in columns (East Asian wide characters take two): broadcasters' usual limit."""
CUE_LINES = 2
MAX_CUE_S = 7.0
"""Longest time that a subtitle stands, in seconds; longer ones are read twice."""
MIN_CUE_S = 0.7
"""Shortest time that a subtitle stands, in seconds, where the next one leaves it: less cannot be read."""

_NOT_IN_A_LINE = re.compile("[\x00-\x20\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]+")
_CLAUSE_ENDS = (",", ";", ":", "-", "–", "—", "،", "、", "，", "；", "：")
_CLAUSE_PAUSE_S = 0.3
_NO_SPEAKER = "UNKNOWN"

Writer = Callable[[Transcript, str], str]
"""Makes the text of a file from a transcript and the recording's name."""


def one_line(text: str) -> str:
    r"""The text without control characters and line breaks; runs of them and of spaces become one space.

    Marks that set the direction of writing stay: they are part of Hebrew and Arabic text and end with the line.

    >>> one_line("two\r\n lines\x00and\tmore ")
    'two lines and more'
    """
    return _NOT_IN_A_LINE.sub(" ", text).strip(" ")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    whole = f"{milliseconds // 3_600_000:02d}:{milliseconds // 60_000 % 60:02d}:{milliseconds // 1000 % 60:02d}"
    return f"{whole}{point}{milliseconds % 1000:03d}"


# --- plain text and tables ------------------------------------------------------------------------------------------


def line(utterance: Utterance) -> str:
    """An utterance as one line of plain text."""
    text = one_line(utterance.text)
    if utterance.speaker is None:
        return text
    return f"[{_clock(utterance.start, '.')[:8]}] {one_line(utterance.speaker)}: {text}"


def _txt(transcript: Transcript, _name: str) -> str:
    return "".join(f"{line(utterance)}\n" for utterance in transcript.utterances)


def _json(transcript: Transcript, _name: str) -> str:
    return transcript.to_json(indent=2) + "\n"


def _cell(text: str) -> str:
    """Text for a table. A space goes before what a reader would take for a quoted cell or a spreadsheet for a formula."""
    text = one_line(text)
    return f" {text}" if text.startswith(('"', "=", "+", "-", "@")) else text


def _tsv(transcript: Transcript, _name: str) -> str:
    rows = ["start\tend\tspeaker\ttext\n"]
    for utterance in transcript.utterances:
        times = f"{round(utterance.start * 1000)}\t{round(utterance.end * 1000)}"  # whole numbers: no decimal comma
        rows.append(f"{times}\t{_cell(utterance.speaker or '')}\t{_cell(utterance.text)}\n")
    return "".join(rows)


def _field(text: str) -> str:
    """A name as one field of a NIST file, which parts fields at white space and has no escape."""
    return re.sub(r'[\s";]+', "_", one_line(text)) or _NO_SPEAKER


def _rttm(transcript: Transcript, name: str) -> str:
    return "".join(
        f"SPEAKER {_field(name)} 1 {turn.start:.3f} {turn.segment.duration:.3f} <NA> <NA> {_field(turn.speaker)} <NA> <NA>\n"
        for turn in transcript.turns
    )


_STM_MARKS = str.maketrans(
    {"{": "(", "}": ")", "<": "(", ">": ")", '"': "”"}
)  # alternatives, labels; quotes for readers


def _stm(transcript: Transcript, name: str) -> str:
    rows: list[str] = []
    for utterance in transcript.utterances:
        text = one_line(utterance.text).translate(_STM_MARKS)
        times = f"{utterance.start:.3f} {utterance.end:.3f}"
        if text:
            rows.append(f"{_field(name)} 1 {_field(utterance.speaker or _NO_SPEAKER)} {times} {text}\n")
    return "".join(rows)


# --- subtitles ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle."""

    start: float
    end: float
    speaker: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that stays on one line, with the time at which it is said."""

    text: str
    start: float
    end: float
    spaced: bool
    """A space parts it from the piece before, where both stand on one line."""


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _columns(text: str) -> int:
    return len(text) + sum(map(_is_wide, text)) if not text.isascii() else len(text)


def _join(pieces: Sequence[_Piece]) -> str:
    return "".join(f" {piece.text}" if piece.spaced else piece.text for piece in pieces).strip(" ")


def _cut(text: str) -> list[str]:
    """The text of one word in parts that fit on a line; those that follow a space begin with it."""
    parts: list[str] = []
    for solid in text.split(" "):
        space, rest = " ", solid
        while _columns(rest) > LINE_COLUMNS:
            fits = LINE_COLUMNS if _columns(rest[:LINE_COLUMNS]) <= LINE_COLUMNS else LINE_COLUMNS // 2
            parts.append(space + rest[:fits])
            space, rest = "", rest[fits:]
        parts.append(space + rest)
    return parts


def _pieces(utterance: Utterance) -> list[_Piece]:
    pieces: list[_Piece] = []
    for word in utterance.words:
        text = one_line(word.text)
        if not text:
            continue
        parts = _cut(text)
        seconds = (word.end - word.start) / sum(map(len, parts))
        start = word.start
        for index, part in enumerate(parts):
            end = word.end if index == len(parts) - 1 else start + seconds * len(part)
            piece = _Piece(
                part.strip(" "), start, end, spaced=part.startswith(" ") and not (index == 0 and word.joined)
            )
            if pieces and not piece.spaced and _is_glued(pieces[-1], piece):
                last = pieces.pop()
                piece = _Piece(last.text + piece.text, last.start, end, last.spaced)
            pieces.append(piece)
            start = end
    return pieces


def _is_glued(before: _Piece, after: _Piece) -> bool:
    """Whether no line may end between two pieces without a space: not inside a word, but anywhere in Chinese."""
    together = _columns(before.text) + _columns(after.text)
    return together <= LINE_COLUMNS and not (_is_wide(before.text[-1]) or _is_wide(after.text[0]))


def _lines(pieces: Sequence[_Piece], label: str) -> list[str]:
    """The pieces on one line, or on two of most equal length; on too long ones if they fit on no two."""
    whole = label + _join(pieces)
    if _columns(whole) <= LINE_COLUMNS or len(pieces) == 1:
        return [whole]
    halves = ([label + _join(pieces[:cut]), _join(pieces[cut:])] for cut in range(1, len(pieces)))
    return min(halves, key=lambda lines: max(map(_columns, lines)))


def _reach(pieces: Sequence[_Piece], first: int, label: str) -> int:
    """Where a cue that begins at `first` must end at the latest: in time, and filling one line after the other."""
    lines, used = 1, _columns(label)
    for stop in range(first, len(pieces)):
        columns = _columns(pieces[stop].text)
        used += columns + (pieces[stop].spaced and stop > first)
        if used > LINE_COLUMNS:
            lines, used = lines + 1, columns
        too_wide = lines > (CUE_LINES if stop > first else 1)
        if too_wide or pieces[stop].end - pieces[first].start > MAX_CUE_S:
            return max(stop, first + 1)  # what fits nowhere stands alone
    return len(pieces)


def _break_cost(pieces: Sequence[_Piece], stop: int) -> float:
    """How much a cue that ends before position `stop` disturbs a reader; one cue more costs 1."""
    text = pieces[stop - 1].text
    if stop == len(pieces) or ends_sentence(text):
        return 0.0
    paused = pieces[stop].start - pieces[stop - 1].end >= _CLAUSE_PAUSE_S
    return 0.3 if paused or text.endswith(_CLAUSE_ENDS) else 0.6


def _cue_stops(pieces: Sequence[_Piece], label: str) -> Iterator[int]:
    """Positions before which cues end: as few as can be, and those at ends of sentences and clauses and at pauses."""
    costs = [math.inf] * len(pieces) + [0.0]  # of everything from a position on
    stops = [0] * len(pieces)
    for first in reversed(range(len(pieces))):
        for stop in range(first + 1, _reach(pieces, first, label) + 1):
            cost = 1.0 + _break_cost(pieces, stop) + costs[stop]
            if cost <= costs[first]:  # of equals the later stop: full cues first
                costs[first], stops[first] = cost, stop
    position = 0
    while position < len(pieces):
        position = stops[position]
        yield position


def cues(transcript: Transcript, *, labels: bool = False) -> list[Cue]:
    """The transcript as subtitles: at most two lines of `LINE_COLUMNS`, at most `MAX_CUE_S`, one speaker each.

    Args:
        transcript: What was said.
        labels: Begin each cue with its speaker's name, which counts as text of the line.
    """
    found: list[Cue] = []
    for utterance in transcript.utterances:
        label = f"{one_line(utterance.speaker)}: " if labels and utterance.speaker else ""
        pieces = _pieces(utterance)
        first = 0
        for stop in _cue_stops(pieces, label):
            lines = _lines(pieces[first:stop], label)
            found.append(Cue(pieces[first].start, pieces[stop - 1].end, utterance.speaker, tuple(lines)))
            first = stop
    ends = [*(cue.start for cue in found), transcript.duration][1:]
    return [
        # a cue must end after it starts, even where words have no length
        Cue(cue.start, max(cue.end, min(cue.start + MIN_CUE_S, limit), cue.start + 0.001), cue.speaker, cue.lines)
        for cue, limit in zip(found, ends, strict=True)
    ]


_SRT_MARKS = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")", "\\": "＼"})
"""Look-alikes of what begins a tag, an arrow or an override code: SubRip has no escape, and players differ in these."""


_SRT_TIME = re.compile(r"(?<=\d):(?=\d{1,2}:\d{1,2}[.,]\d)")


def _srt_text(text: str) -> str:
    """Text for a cue: some readers take any line with two times in it for the head of the next cue."""
    return _SRT_TIME.sub("∶", text.translate(_SRT_MARKS))


def _srt(transcript: Transcript, _name: str) -> str:
    blocks: list[str] = []
    for number, cue in enumerate(cues(transcript, labels=len(transcript.speakers) > 1), start=1):
        text = _srt_text("\n".join(cue.lines))
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def _vtt(transcript: Transcript, _name: str) -> str:
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript):
        voice = f"<v {html.escape(one_line(cue.speaker), quote=False)}>" if cue.speaker else ""
        text = html.escape("\n".join(cue.lines), quote=False)
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{voice}{text}\n")
    return "\n".join(blocks)


# --- the table ------------------------------------------------------------------------------------------------------

FORMATS: Mapping[str, Writer] = MappingProxyType(
    {"txt": _txt, "srt": _srt, "vtt": _vtt, "json": _json, "tsv": _tsv, "rttm": _rttm, "stm": _stm}
)
"""Every written form by its name, which is also its suffix."""


def render(transcript: Transcript, format: str, *, name: str = "recording") -> str:  # noqa: A002 (as in `write`)
    """The transcript in one of `FORMATS`.

    Args:
        transcript: What was said.
        format: Name of the format.
        name: The recording's name, which rttm and stm carry in every line.

    Raises:
        OptionError: The format is unknown.
    """
    writer = FORMATS.get(format)
    if writer is None:
        raise OptionError("format", f"{format!r} is not one of {', '.join(FORMATS)}")
    return writer(transcript, name)


def write(transcript: Transcript, path: str | os.PathLike[str], format: str | None = None) -> None:  # noqa: A002
    """Write a transcript to a file, which appears whole or not at all; see `Transcript.write`."""
    target = Path(path)
    text = render(transcript, format or target.suffix.removeprefix(".").lower(), name=target.stem)
    replace_file(target, text.encode("utf-8", "replace"))


def replace_file(path: Path, content: bytes) -> None:
    """Put bytes into a file by writing another beside it and renaming that, so that nobody ever sees half of it.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)  # a pipe or a device, which must not be replaced
        return
    target = path.resolve()  # a link keeps pointing where it did
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        aside.write_bytes(content)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
