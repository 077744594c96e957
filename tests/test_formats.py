"""Each written form is read back by somebody else's parser, with text that tries to break it (hazard 29)."""

import csv
import html
import io
import os
import random
import re
import stat
import unicodedata
from itertools import pairwise

import pysubs2
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.database.util import load_rttm, load_stm

from diarist import formats
from diarist.errors import OptionError
from diarist.formats import FORMATS, LINE_COLUMNS, MAX_CUE_S, cues, one_line, render, replace_file
from diarist.timeline import Segment, Turn, Word
from diarist.transcript import Transcript, build

HOSTILE = [
    *("-->", "--->", "00:00:01,000 --> 00:00:02,000", "00:00:01.000 --> 00:00:02.000", "\r\n\r\n7\r\n", "\n\n", "\r"),
    *("\x00", "\t", "\x0b", "\x0c", "\x1b[31m", "\x1e", "\x85", "\u2028", "\u2029", "\ufeff", "\u00a0", "\u3000"),
    *("\u200e", "\u200f", "\u202e", "\u2066", "\u2069", "שלום", "مرحبا؟", "日本語です。", "e\u0301", "👩‍🚀"),
    *("<v Eve>", "</v>", "<b>", "</i>", "<00:00:01.000>", "<", ">", "&", "&lt;", "&#10;", "{\\an8}", "\\N", "{", "}"),
    *("NOTE", "STYLE", "REGION", "WEBVTT", "X-TIMESTAMP-MAP=", "1", "42", ";;", "#", "%", "=1+1", "@x", "+1", "-5"),
    *('"', '""', "'", '"a', "`", "$(id)", "NA", "nan", "<NA>", "SPEAKER x 1 0 1", "word", "Yes.", "a" * 60, "漢" * 50),
]


def spoken(texts, speaker="SPEAKER_00", length=0.4, gap=1.5):
    """One utterance for each text."""
    step = length + gap
    words = [Word(text, i * step, i * step + length, 0.5, speaker) for i, text in enumerate(texts)]
    return build(words, duration=len(texts) * step + 1, language="en")


def squeezed(text):
    """Text without white space: how lines are broken is not part of it."""
    return re.sub(r"\s+", "", text)


def parsed_srt(text):
    return [(event.start, event.end, event.plaintext) for event in pysubs2.SSAFile.from_string(text, format_="srt")]


def parsed_vtt(text):
    def milliseconds(clock):
        hours, minutes, seconds = clock.split(":")
        return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000)

    return [
        (milliseconds(c.start), milliseconds(c.end), html.unescape(c.voice or ""), html.unescape(c.text))
        for c in webvtt.from_string(text)
    ]


def parsed_tsv(text, quoting=csv.QUOTE_MINIMAL):
    return list(csv.DictReader(io.StringIO(text), dialect="excel-tab", quoting=quoting))


def parsed_nist(text, fields):
    """Our own strict reader: lines end with a newline, the fields are parted by single spaces."""
    assert text == "" or text.endswith("\n")
    rows = [line.split(" ", fields - 1) for line in text.split("\n")[:-1]]
    assert all(len(row) == fields and all(row) for row in rows)
    return rows


@pytest.fixture
def dialogue():
    words = [
        Word("Hello,", 0.5, 0.8, 0.9, "SPEAKER_00"),
        Word("Anna.", 0.8, 1.25, 0.9, "SPEAKER_00"),
        Word("Hi!", 1.5, 2.5, 0.9, "SPEAKER_01"),
    ]
    turns = [Turn(Segment(0.4, 1.4), "SPEAKER_00"), Turn(Segment(1.3, 2.6), "SPEAKER_01")]
    return build(words, duration=3725.0, language="en", turns=turns)


# --- what they look like ----------------------------------------------------------------------------------------------


def test_txt(dialogue):
    assert render(dialogue, "txt") == "[00:00:00] SPEAKER_00: Hello, Anna.\n[00:00:01] SPEAKER_01: Hi!\n"
    assert render(spoken(["One.", "Two."], speaker=None), "txt") == "One.\nTwo.\n"


def test_srt(dialogue):
    assert render(dialogue, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,250\nSPEAKER_00: Hello, Anna.\n\n2\n00:00:01,500 --> 00:00:02,500\nSPEAKER_01: Hi!\n"
    )
    assert render(spoken(["Alone."]), "srt") == "1\n00:00:00,000 --> 00:00:00,700\nAlone.\n"


def test_vtt(dialogue):
    assert render(dialogue, "vtt") == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\n<v SPEAKER_00>Hello, Anna.\n\n"
        "00:00:01.500 --> 00:00:02.500\n<v SPEAKER_01>Hi!\n"
    )


def test_json(dialogue):
    assert Transcript.from_json(render(dialogue, "json")) == dialogue


def test_tsv(dialogue):
    assert render(dialogue, "tsv") == (
        "start\tend\tspeaker\ttext\n500\t1250\tSPEAKER_00\tHello, Anna.\n1500\t2500\tSPEAKER_01\tHi!\n"
    )


def test_rttm(dialogue):
    assert render(dialogue, "rttm", name="my call") == (
        "SPEAKER my_call 1 0.400 1.000 <NA> <NA> SPEAKER_00 <NA> <NA>\n"
        "SPEAKER my_call 1 1.300 1.300 <NA> <NA> SPEAKER_01 <NA> <NA>\n"
    )


def test_stm(dialogue):
    assert render(dialogue, "stm", name="call") == (
        "call 1 SPEAKER_00 0.500 1.250 Hello, Anna.\ncall 1 SPEAKER_01 1.500 2.500 Hi!\n"
    )
    assert render(spoken(["Hm."], speaker=None), "stm").startswith("recording 1 UNKNOWN 0.000")


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_said_can_be_written(name):
    text = render(build([], duration=0, language=None), name)
    assert "SPEAKER" not in text


def test_hours(dialogue):
    late = build([Word("Late.", 360_000.5, 360_001.9996, 0.5)], duration=360_002, language=None)
    assert "100:00:00,500 --> 100:00:02,000" in render(late, "srt")
    assert parsed_vtt(render(late, "vtt"))[0][:2] == (360_000_500, 360_002_000)


# --- read back by others ----------------------------------------------------------------------------------------------


def test_rttm_and_stm_are_read_by_pyannote(dialogue, tmp_path):
    dialogue.write(tmp_path / 'a "b; c.rttm')
    annotation = load_rttm(tmp_path / 'a "b; c.rttm')["a_b_c"]
    assert [(s.start, s.end, label) for s, _, label in annotation.itertracks(yield_label=True)] == [
        (0.4, 1.4, "SPEAKER_00"),
        (1.3, pytest.approx(2.6), "SPEAKER_01"),
    ]
    dialogue.write(tmp_path / "call.stm")
    annotation = load_stm(tmp_path / "call.stm")["call"]
    assert [(s.start, s.end, label) for s, _, label in annotation.itertracks(yield_label=True)] == [
        (0.5, 1.25, "SPEAKER_00"),
        (1.5, 2.5, "SPEAKER_01"),
    ]


def check_round_trip(transcript, name="recording"):
    """Every utterance, once, in order, in every format."""
    said = [(one_line(u.text), one_line(u.speaker or "")) for u in transcript.utterances]
    assert [squeezed(line) for line in render(transcript, "txt").split("\n")[:-1]] == [
        squeezed(formats.line(u)) for u in transcript.utterances
    ]
    said_cues = [(text, speaker) for text, speaker in said if text]
    labelled = len(transcript.speakers) > 1
    found = parsed_srt(render(transcript, "srt"))
    if not labelled:
        assert squeezed("".join(text for *_, text in found)) == squeezed(
            formats._srt_text("".join(text for text, _ in said_cues))
        )
    assert len(found) == len(cues(transcript, labels=labelled))
    assert all(start < end for start, end, _ in found)

    found = parsed_vtt(render(transcript, "vtt"))
    assert squeezed("".join(text for *_, text in found)) == squeezed("".join(text for text, _ in said_cues))
    assert {voice.strip() for *_, voice, _ in found} == {speaker.strip() for _, speaker in said_cues}
    assert [(start, end) for start, end, *_ in found] == [
        (round(c.start * 1000), round(c.end * 1000)) for c in cues(transcript)
    ]

    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        rows = parsed_tsv(render(transcript, "tsv"), quoting)
        assert [(row["text"].strip(" "), row["speaker"].strip(" ")) for row in rows] == said
        assert [int(row["start"]) for row in rows] == [round(u.start * 1000) for u in transcript.utterances]
        assert not any(row["text"].startswith(("=", "+", "-", "@")) for row in rows)

    rows = parsed_nist(render(transcript, "stm", name=name), 6)
    assert [(float(row[3]), float(row[4])) for row in rows] == [
        (u.start, u.end) for u in transcript.utterances if one_line(u.text)
    ]
    assert [row[5] for row in rows] == [text.translate(formats._STM_MARKS) for text, _ in said_cues]
    rows = parsed_nist(render(transcript, "rttm", name=name), 10)
    assert len(rows) == len(transcript.turns)
    assert Transcript.from_json(render(transcript, "json")) == transcript


any_text = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=4).map("".join)


@settings(max_examples=250, deadline=None)
@given(st.lists(any_text, max_size=6), st.sampled_from(["SPEAKER_00", None]) | any_text, any_text)
def test_h29_text_cannot_break_a_format(texts, speaker, name):
    speaker = speaker and (one_line(speaker) or None) and speaker
    transcript = spoken([*texts, "The end."], speaker=speaker)
    check_round_trip(transcript, name)


def test_h29_a_hundred_thousand_hostile_utterances():
    rng = random.Random(29)
    for _ in range(10):
        texts = ["".join(rng.choices(HOSTILE, k=rng.randint(1, 3))) for _ in range(1999)]
        check_round_trip(spoken([*texts, "The end."]))  # each in five formats: 10^5 in all


def test_h29_hostile_speakers():
    rng = random.Random(30)
    words = [Word("text", i, i + 0.5, 0.5, "".join(rng.choices(HOSTILE, k=2)) + str(i)) for i in range(500)]
    turns = [Turn(Segment(word.start, word.end), word.speaker) for word in words]
    check_round_trip(build(words, duration=500, language=None, turns=turns))


def test_arrows_cannot_be_made_by_escaping():
    transcript = spoken(["--->", "----->", "-- >", "-\x00->", "The end."])
    for name in ("srt", "vtt"):
        lines = render(transcript, name).split("\n")
        assert sum("-->" in line for line in lines) == 5


def test_writing_marks_of_other_scripts_stay():
    assert one_line("\u200fשלום\u200e \u202eabc\u202c") == "\u200fשלום\u200e \u202eabc\u202c"


# --- subtitles --------------------------------------------------------------------------------------------------------


def columns(text):
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


words_of_speech = st.lists(
    st.tuples(
        st.text("abcdeäé漢,.?-", min_size=1, max_size=14)
        | st.sampled_from(["I", "Yes.", "漢字", "x" * 100, "two words"]),
        st.integers(0, 300),
        st.integers(20, 900),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(words_of_speech, st.booleans())
def test_cues_are_short_ordered_and_whole(parts, labels):
    start, words = 0.0, []
    for text, gap, length, joined in parts:
        start += gap / 1000
        words.append(Word(text, start, start + length / 1000, 0.5, "SPEAKER_00", joined))
        start += length / 1000
    transcript = build(words, duration=start, language=None)
    found = cues(transcript, labels=labels)
    label = "SPEAKER_00: " if labels else ""
    for cue in found:
        assert len(cue.lines) <= 2
        assert cue.lines[0].startswith(label)
        assert cue.end > cue.start
        one_piece = " " not in cue.lines[0].removeprefix(label)
        for text in cue.lines:
            assert columns(text) <= LINE_COLUMNS or (labels and one_piece)
        assert cue.end - cue.start <= MAX_CUE_S + 1e-6
    for before, after in pairwise(found):
        assert before.end <= after.start + 0.0011
    text = "".join("".join(cue.lines).removeprefix(label) for cue in found)
    assert squeezed(text) == squeezed("".join(utterance.text for utterance in transcript.utterances))


def test_cues_end_at_sentences_clauses_and_pauses_where_they_can():
    text = (
        "At least, you know, they all call me a Yankee down here. So what can I say, when all of them keep on "
        "asking me the same thing over and over again?"
    )
    words = [Word(part, i * 0.3, i * 0.3 + 0.3, 0.5) for i, part in enumerate(text.split())]
    found = cues(build(words, duration=60, language="en"))
    assert [" ".join(cue.lines) for cue in found] == [
        "At least, you know, they all call me a Yankee down here. So what can I say,",
        "when all of them keep on asking me the same thing over and over again?",
    ]
    assert found[0].lines == ("At least, you know, they all call me", "a Yankee down here. So what can I say,")


def test_long_speech_is_cut_by_time():
    words = [Word("hm", i * 2.0, i * 2.0 + 1.9, 0.5) for i in range(10)]
    found = cues(build(words, duration=60, language="en"))
    assert len(found) == 4
    assert max(cue.end - cue.start for cue in found) <= MAX_CUE_S


def test_a_short_word_stands_long_enough_to_be_read_but_not_into_the_next_cue():
    words = [Word("Yes.", 1.0, 1.1, 0.5, "A"), Word("No.", 1.5, 1.6, 0.5, "B")]
    first, second = cues(build(words, duration=2.0, language="en"))
    assert (first.start, first.end) == (1.0, 1.5)
    assert (second.start, second.end) == (1.5, 2.0)


def test_words_of_no_length_still_make_cues_that_end():
    words = [Word(f"{i}.", 1.0, 1.0, 0.5, "AB"[i % 2]) for i in range(4)]
    for start, end, _ in parsed_srt(render(build(words, duration=1.0, language=None), "srt")):
        assert end > start


def test_lines_never_end_inside_a_word_that_fits():
    words = [Word("well", 0, 0.2, 0.5), *(Word("-known", 0.2, 0.4, 0.5, joined=True) for _ in range(3))]
    words += [Word("abcdefghijklmnopqrstuvwxyz", 0.4, 1, 0.5)]
    (cue,) = cues(build(words, duration=2, language=None))
    assert cue.lines == ("well-known-known-known", "abcdefghijklmnopqrstuvwxyz")


# --- files ------------------------------------------------------------------------------------------------------------


def test_unknown_format():
    with pytest.raises(OptionError, match="'doc' is not one of txt, srt, vtt, json, tsv, rttm, stm"):
        render(spoken(["a"]), "doc")


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    replace_file(target, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(type(target), "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            replace_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    replace_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_keeps_pointing_and_rights_are_the_usual(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    replace_file(tmp_path / "link.txt", b"text")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_bytes() == b"text"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "real" / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace_file(pipe, b"text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_long_name_can_be_written(tmp_path):
    name = "a" * 251 + ".txt"
    spoken(["Hello."]).write(tmp_path / name)
    assert (tmp_path / name).is_file()
