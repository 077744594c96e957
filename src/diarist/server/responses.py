"""A transcript in the forms that clients read. The speech text is the same in all of them.

These functions compute, so they run in a thread; `dump` writes JSON in pieces, because one long call of the encoder
would hold the interpreter, and with it the event loop.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from diarist import formats
from diarist.asr.languages import LANGUAGES
from diarist.original import leading
from diarist.server.parameters import TranscriptionForm, TranslationForm
from diarist.timeline import DecodedSegment
from diarist.transcript import Transcript, sentences

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
VTT = "text/vtt; charset=utf-8"
_PIECE = 200  # list items that are encoded at once
_LEAST_PROBABILITY = 1e-4


@dataclass(frozen=True, slots=True)
class Rendered:
    """A body with its media type."""

    body: bytes
    media_type: str


def dump(value: dict[str, Any]) -> bytes:
    """An object as JSON, without NaN or infinity. A list may be an iterator: then it never exists as a whole.

    >>> dump({"text": "a", "chunks": iter([1, 2])})
    b'{"text": "a", "chunks": [1, 2]}'
    """
    return "".join(_dumped(value)).encode("utf-8", "replace")


def _dumped(value: dict[str, Any]) -> Iterator[str]:
    opening = "{"
    for name, part in value.items():
        yield f"{opening}{json.dumps(name)}: "
        opening = ", "
        if isinstance(part, Iterator | list):
            items, separator = iter(part), "["
            while piece := list(islice(items, _PIECE)):
                yield separator + _encode(piece)[1:-1]
                separator = ", "
            yield "[]" if separator == "[" else "]"
        else:
            yield _encode(part)
    yield "{}" if opening == "{" else "}"


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# --- pieces of a transcript -------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    return " ".join(text.split())


def segments_of(transcript: Transcript) -> list[tuple[str, float, float, DecodedSegment]]:
    """Text, start and end of the parts of a transcript, each with the recognizer's evidence for it.

    They are the recognizer's own segments where these hold exactly the transcript's text; else its sentences.
    """
    own = transcript.segments
    if _plain("".join(segment.text for segment in own)) == _plain(transcript.text):
        return [(segment.text, segment.start, segment.end, segment) for segment in own]
    found: list[tuple[str, float, float, DecodedSegment]] = []
    position = 0
    for words in sentences(transcript):
        start, end = words[0].start, words[-1].end
        while position + 1 < len(own) and own[position].end <= start:
            position += 1
        evidence = own[position] if own else DecodedSegment(start, end, "", (), 0.0, 0.0, 0.0, 0.0)
        found.append((leading(words), start, end, evidence))
    return found


# --- OpenAI's ---------------------------------------------------------------------------------------------------------


def letters() -> Iterator[str]:
    """A, B, ... Z, AA, AB, ...

    >>> from itertools import islice
    >>> list(islice(letters(), 25, 28))
    ['Z', 'AA', 'AB']
    """
    number = 0
    while True:
        number += 1
        rest, name = number, ""
        while rest:
            rest, digit = divmod(rest - 1, 26)
            name = chr(ord("A") + digit) + name
        yield name


def speaker_names(speakers: Sequence[str], known: Sequence[str] = ()) -> dict[str, str]:
    """What OpenAI's clients call the speakers: their names where known, else letters in order."""
    free = (letter for letter in letters() if letter not in known)
    numbered = re.compile(r"SPEAKER_\d+")
    return {
        speaker: next(free) if numbered.fullmatch(speaker) and speaker not in known else speaker for speaker in speakers
    }


def usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": transcript.duration}


def logprobs(transcript: Transcript) -> Iterator[dict[str, Any]]:
    """One entry for each word: this is as fine as the transcript knows probabilities."""
    return (
        {
            "token": token,
            "bytes": list(token.encode("utf-8", "replace")),
            "logprob": round(math.log(max(word.probability, _LEAST_PROBABILITY)), 4),
        }
        for word, first in zip(transcript.words, [True, *[False] * len(transcript.words)], strict=False)
        for token in [word.text if first or word.joined else f" {word.text}"]
    )


def openai(transcript: Transcript, form: TranslationForm) -> Rendered:
    """A transcript in the response format that a form asks for."""
    if form.response_format == "text":
        return Rendered(f"{transcript.text}\n".encode("utf-8", "replace"), TEXT)
    if form.response_format in ("srt", "vtt"):
        text = formats.render(transcript, form.response_format)
        return Rendered(text.encode("utf-8", "replace"), VTT if form.response_format == "vtt" else TEXT)
    if form.response_format == "verbose_json":
        return Rendered(dump(_verbose(transcript, form)), JSON)
    if form.response_format == "diarized_json" and isinstance(form, TranscriptionForm):
        return Rendered(dump(_diarized(transcript, form)), JSON)
    return Rendered(dump(_short(transcript, form)), JSON)


def _short(transcript: Transcript, form: TranslationForm) -> dict[str, Any]:
    if not isinstance(form, TranscriptionForm):
        return {"text": transcript.text}
    return {"text": transcript.text, **_extras(transcript, form), "usage": usage(transcript)}


def _extras(transcript: Transcript, form: TranscriptionForm) -> dict[str, Any]:
    languages = [{"code": transcript.language}] if transcript.language else []
    return {"languages": languages, **({"logprobs": logprobs(transcript)} if "logprobs" in form.include else {})}


def _verbose(transcript: Transcript, form: TranslationForm) -> dict[str, Any]:
    translating = not isinstance(form, TranscriptionForm)
    wanted = ("segment",) if not isinstance(form, TranscriptionForm) else form.timestamp_granularities or ("segment",)
    names = speaker_names(transcript.speakers, form.known_speaker_names if isinstance(form, TranscriptionForm) else ())
    language = "en" if translating else transcript.language or ""
    body: dict[str, Any] = {
        "task": "translate" if translating else "transcribe",
        "language": LANGUAGES.get(language, language),
        "duration": transcript.duration,
        "text": transcript.text,
    }
    if "segment" in wanted:
        body["segments"] = (
            {
                "id": number,
                "seek": round(start * 100),
                "start": start,
                "end": end,
                "text": text,
                "tokens": list(evidence.tokens),
                "temperature": evidence.temperature,
                "avg_logprob": evidence.avg_logprob,
                "compression_ratio": evidence.compression_ratio,
                "no_speech_prob": evidence.no_speech_prob,
            }
            for number, (text, start, end, evidence) in enumerate(segments_of(transcript))
        )
    if "word" in wanted:
        body["words"] = (
            {
                "word": word.text,
                "start": word.start,
                "end": word.end,
                **({"speaker": names.get(word.speaker, word.speaker)} if word.speaker else {}),
            }
            for word in transcript.words
        )
    return {**body, **_assistance(transcript), "usage": usage(transcript)}


def _assistance(transcript: Transcript) -> dict[str, Any]:
    """What came of the assistant, where one is loaded: OpenAI has no word for it."""
    return {} if transcript.assistance is None else {"assistance": transcript.assistance}


def diarized_segments(transcript: Transcript, form: TranscriptionForm) -> list[dict[str, Any]]:
    """One segment for each utterance, as in `diarized_json` and in its stream."""
    met = dict.fromkeys(utterance.speaker for utterance in transcript.utterances if utterance.speaker)
    names = speaker_names(list(met), form.known_speaker_names)
    return [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{number:03d}",
            "start": utterance.start,
            "end": utterance.end,
            "text": utterance.text,
            "speaker": names.get(utterance.speaker or "", utterance.speaker or "UNKNOWN"),
        }
        for number, utterance in enumerate(transcript.utterances, start=1)
    ]


def _diarized(transcript: Transcript, form: TranscriptionForm) -> dict[str, Any]:
    segments = diarized_segments(transcript, form)
    return {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": "\n".join(f"{segment['speaker']}: {segment['text']}" for segment in segments),
        "segments": segments,
        **_assistance(transcript),
        "usage": usage(transcript),
    }


def done_event(transcript: Transcript, form: TranscriptionForm) -> dict[str, Any]:
    """The last event of a stream."""
    return {
        "type": "transcript.text.done",
        "text": transcript.text,
        **_extras(transcript, form),
        "usage": usage(transcript),
    }
