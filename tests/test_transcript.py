"""The transcript checks itself, settles times, and is what its JSON says."""

import json
import math
import pickle
from dataclasses import FrozenInstanceError, replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist.errors import DiaristError, OptionError, TranscriptError
from diarist.timeline import DecodedSegment, Segment, Turn, Word, join_words
from diarist.transcript import Transcript, Utterance, UtteranceOptions, _longest_in_order, build, group, settle


def word(text, start, end, speaker=None, **more):
    return Word(text, start, end, 0.9, speaker, **more)


def decoded(**changes):
    evidence = {"temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.2, "no_speech_prob": 0.01}
    return DecodedSegment(
        **{"start": 0.5, "end": 2.0, "text": " Hello there.", "tokens": (1, 2), **evidence, **changes}
    )


@pytest.fixture
def transcript():
    words = [
        word("Hello", 0.5, 0.8, "SPEAKER_00"),
        word("there.", 0.8, 1.2, "SPEAKER_00"),
        word("Hi!", 1.5, 1.7, "SPEAKER_01"),
    ]
    return build(
        words,
        duration=10.0,
        language="en",
        turns=[Turn(Segment(1.3, 1.8), "SPEAKER_01"), Turn(Segment(0.4, 1.4), "SPEAKER_00")],
        segments=[decoded()],
        models={"asr": {"name": "base"}, "assistant": None, "diarization": None},
        timings={"decode": 0.01, "total": 0.5},
        warnings=["the file is cut short"],
    )


def test_what_is_built(transcript):
    assert transcript.text == "Hello there. Hi!"
    assert transcript.speakers == ("SPEAKER_00", "SPEAKER_01")
    assert [(u.speaker, u.start, u.end, u.text) for u in transcript.utterances] == [
        ("SPEAKER_00", 0.5, 1.2, "Hello there."),
        ("SPEAKER_01", 1.5, 1.7, "Hi!"),
    ]
    assert [t.speaker for t in transcript.turns] == ["SPEAKER_00", "SPEAKER_01"]  # in time order, overlap kept
    assert transcript.turns[0].end > transcript.turns[1].start
    assert len(transcript.words) == 3


def test_json_has_the_stable_keys(transcript):
    data = json.loads(transcript.to_json())
    assert ", ".join(data) == (
        "text, language, duration, speakers, utterances, turns, segments, models, timings, warnings"
    )
    assert data["utterances"][1] == {
        "speaker": "SPEAKER_01",
        "start": 1.5,
        "end": 1.7,
        "text": "Hi!",
        "words": [{"text": "Hi!", "start": 1.5, "end": 1.7, "probability": 0.9, "speaker": "SPEAKER_01"}],
    }
    assert data["turns"][0] == {"speaker": "SPEAKER_00", "start": 0.4, "end": 1.4}
    assert data["segments"][0]["tokens"] == [1, 2]


def test_json_round_trip(transcript):
    assert Transcript.from_json(transcript.to_json()) == transcript
    assert Transcript.from_json(transcript.to_json(indent=2).encode()) == transcript
    assert pickle.loads(pickle.dumps(transcript)) == transcript


def test_unknown_keys_of_newer_files_are_ignored(transcript):
    data = json.loads(transcript.to_json()) | {"mood": "good"}
    assert Transcript.from_dict(data) == transcript


def test_it_is_immutable(transcript):
    with pytest.raises(FrozenInstanceError):
        transcript.text = "something else"


def test_nothing_was_said():
    empty = build([], duration=0.0, language=None)
    assert (empty.text, empty.utterances, empty.speakers, empty.words) == ("", (), (), ())
    assert Transcript.from_json(empty.to_json()) == empty


def test_without_diarization_there_are_no_speakers():
    plain = build([word("Hello.", 0, 1)], duration=2, language="en")
    assert plain.speakers == plain.turns == ()
    assert plain.utterances[0].speaker is None


def test_speakers_in_order_of_first_appearance():
    words = [word("b", 2.0, 2.5, "B"), word("c", 3.0, 3.5, "C")]
    found = build(words, duration=9, language=None, turns=[Turn(Segment(5, 6), "A"), Turn(Segment(1.9, 3), "B")])
    assert found.speakers == ("B", "C", "A")


# --- rules ------------------------------------------------------------------------------------------------------------


def broken(**changes):
    first = word("Hello", 0.5, 0.8, "A")
    utterance = Utterance("A", 0.5, 0.8, "Hello", (first,))
    fields = {"text": "Hello", "language": "en", "duration": 2.0, "speakers": ("A",), "utterances": (utterance,)}
    return {**fields, **changes}


def one(changed, **changes):
    """An utterance of one changed word, consistent but for the change."""
    utterance = Utterance(changed.speaker, changed.start, changed.end, changed.text, (changed,))
    return broken(text=changed.text, utterances=(replace(utterance, **changes),))


WORD = word("Hello", 0.5, 0.8, "A")
CASES = {
    "text that is not the words": broken(text="Hello you"),
    "negative duration": broken(duration=-1.0),
    "duration that is no number": broken(duration=math.nan),
    "endless duration": broken(duration=math.inf),
    "word past the end": broken(duration=0.7),
    "word before the start": one(replace(WORD, start=-0.1)),
    "word that ends before it starts": one(replace(WORD, start=0.9)),
    "start that is no number": one(replace(WORD, start=math.nan)),
    "end that is no number": one(replace(WORD, end=math.nan)),
    "probability above one": one(replace(WORD, probability=1.5)),
    "probability that is no number": one(replace(WORD, probability=math.nan)),
    "blank word": one(replace(WORD, text=" "), text=""),
    "words out of order": broken(
        text="Hello Hello",
        utterances=(
            Utterance("A", 0.5, 0.8, "Hello", (WORD,)),
            Utterance("A", 0.2, 0.4, "Hello", (replace(WORD, start=0.2, end=0.4),)),
        ),
    ),
    "unknown speaker": one(replace(WORD, speaker="B")),
    "word of another speaker": one(WORD, speaker=None),
    "utterance without words": broken(utterances=(Utterance("A", 0.5, 0.8, "Hello", ()),)),
    "utterance with other text": one(WORD, text="Hallo"),
    "utterance with other times": one(WORD, end=1.0),
    "speaker listed twice": broken(speakers=("A", "A")),
    "turn of an unknown speaker": broken(turns=(Turn(Segment(0, 1), "B"),)),
    "turn past the end": broken(turns=(Turn(Segment(0, 3), "A"),)),
    "empty turn": broken(turns=(Turn(Segment(1, 1), "A"),)),
    "turns out of order": broken(turns=(Turn(Segment(1, 2), "A"), Turn(Segment(0, 1), "A"))),
    "segment past the end": broken(segments=(decoded(end=5.0),)),
    "evidence that is no number": broken(segments=(decoded(avg_logprob=-math.inf),)),
    "timing that is no number": broken(timings={"total": math.nan}),
    "half a surrogate": broken(warnings=("\ud800",)),
}


def test_the_unbroken_case_is_accepted():
    assert Transcript(**broken()).text == "Hello"


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_broken_rules_are_refused(fields):
    with pytest.raises(TranscriptError):
        Transcript(**fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "null",
        "3",
        "{}",
        "[" * 200_000,
        b"\xff\xfe",
        '{"text": "", "language": null, "duration": NaN, "speakers": [], "utterances": [], "turns": []}',
        '{"text": "", "language": null, "duration": 1e999, "speakers": [], "utterances": [], "turns": []}',
        f'{{"text": "", "language": null, "duration": {10**400}, "speakers": [], "utterances": [], "turns": []}}',
        '{"text": 3, "language": null, "duration": 1, "speakers": [], "utterances": [], "turns": []}',
        '{"text": "", "language": null, "duration": 1, "speakers": [1], "utterances": [], "turns": []}',
        '{"text": "", "language": null, "duration": 1, "speakers": [], "utterances": [3], "turns": []}',
        '{"text": "", "language": null, "duration": 1, "speakers": [], "utterances": [], "turns": [], "timings": []}',
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(TranscriptError):
        Transcript.from_json(text)


def test_what_json_has_no_form_for_is_refused(transcript):
    for value in (object(), math.nan):
        with pytest.raises(TranscriptError):
            replace(transcript, models={"asr": value}).to_json()
    with pytest.raises(TranscriptError):
        build([], duration=math.nan, language=None)


# --- settling ---------------------------------------------------------------------------------------------------------


def times(words, duration):
    return [(w.start, w.end) for w in settle(words, duration)]


def test_times_that_are_slightly_off_are_settled():
    words = [
        word("a", -0.1, 0.52),  # before the start, and into b
        word("b", 0.5, 0.9),
        word("c", 1.4, 1.3),  # ends before it starts
        word("d", 1.9, 2.5),  # past the end
        word("e", 9.0, math.inf),
    ]
    assert times(words, 2.0) == [(0.0, 0.5), (0.5, 0.9), (1.4, 1.4), (1.9, 2.0), (2.0, 2.0)]


def test_words_without_times_share_the_time_between_their_neighbours():
    words = [word("a", 0, 1), word("b", math.nan, math.nan), word("c", math.nan, 3.0), word("d", 2.0, math.nan)]
    assert times(words, 3.0) == [(0, 1), (1, 1.5), (1.5, 2), (2, 2)]
    assert times([word("a", math.nan, math.nan)], 3.0) == [(0, 3)]


def test_a_few_wild_times_do_not_carry_the_others_away():
    words = [word("right", i, i + 0.9) for i in range(20)]
    words[5:8] = [word("wild", 100 + i, 101 + i) for i in range(3)]
    words[12:14] = [word("wild", i, i + 1) for i in range(2)]
    found = times(words, 200.0)
    assert [place for place, w in zip(found, words, strict=True) if w.text == "right"] == [
        (w.start, w.end) for w in words if w.text == "right"
    ]
    assert found[5:8] == [(4.9, 5.933), (5.933, 6.967), (6.967, 8.0)]
    assert found[12:14] == [(11.9, 12.95), (12.95, 14.0)]


@given(st.lists(st.integers(0, 20) | st.just(math.nan), max_size=9))
def test_the_longest_run_in_order_against_brute_force(values):
    found = _longest_in_order(values)
    kept = [values[position] for position in found]
    assert found == sorted(set(found))
    assert kept == sorted(kept)
    assert not any(map(math.isnan, kept))
    runs = (run for size in range(len(values), -1, -1) for run in combinations(values, size))
    longest = next(run for run in runs if all(a <= b for a, b in pairwise(run)) and not any(map(math.isnan, run)))
    assert len(found) == len(longest)


def test_text_is_cleaned_only_of_what_cannot_be_written():
    found = settle([word(" Hi\t", 0, 1), word("  ", 1, 2), word("a\ud800b", 2, 3), word("\ud83d\ude00", 3, 4)], 9)
    assert [w.text for w in found] == ["Hi", "a\ufffdb", "\U0001f600"]


def test_evidence_that_is_no_number_becomes_zero():
    found = build([], duration=3, language=None, segments=[decoded(avg_logprob=math.nan)], timings={"total": math.inf})
    assert found.segments[0].avg_logprob == 0.0
    assert found.timings == {"total": 0.0}
    (settled,) = settle([replace(word("a", 0, 1), probability=math.nan)], 3)
    assert settled.probability == 0.0


def test_turns_are_cut_to_the_recording():
    turns = [Turn(Segment(-1, 0.5), "A"), Turn(Segment(0.7, 5), "B"), Turn(Segment(4, 5), "C")]
    found = build([], duration=2, language=None, turns=turns)
    assert [(t.start, t.end, t.speaker) for t in found.turns] == [(0.0, 0.5, "A"), (0.7, 2.0, "B")]
    assert found.speakers == ("A", "B")


anything = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 30)
any_word = st.builds(
    Word,
    text=st.text(max_size=6),
    start=anything,
    end=anything,
    probability=anything,
    speaker=st.sampled_from(["A", "B", None]),
    joined=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(any_word, max_size=12),
    st.floats(0, 30),
    st.lists(st.builds(Turn, st.builds(Segment, anything, anything), st.sampled_from("AB")), max_size=5),
)
def test_h28_whatever_is_found_makes_a_transcript_that_round_trips(words, duration, turns):
    found = build(words, duration=duration, language="en", turns=turns)
    spoken = [w for w in words if w.text.strip()]
    assert len(found.words) == len(spoken)
    assert [(w.text, w.speaker) for w in found.words] == [(w.text.strip(), w.speaker) for w in spoken]
    assert Transcript.from_json(found.to_json()) == found
    assert settle(found.words, found.duration) == list(found.words)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900)), max_size=20))
def test_good_times_only_lose_fractions_of_milliseconds(steps):
    start, words = 0.0, []
    for gap, length in steps:
        start += gap / 1777
        words.append(word("a", start, start + length / 1777))
        start += length / 1777
    for before, after in zip(words, settle(words, start), strict=True):
        assert after.start == pytest.approx(before.start, abs=0.00051)
        assert after.end == pytest.approx(before.end, abs=0.00051)


# --- utterances -------------------------------------------------------------------------------------------------------


def texts(words, options=None):
    return [utterance.text for utterance in group(words, options)]


def test_utterances_part_at_speakers_and_pauses():
    assert texts([word("a", 0, 1, "A"), word("b", 1, 2, "B"), word("c", 2, 3, "B")]) == ["a", "b c"]
    assert texts([word("a", 0, 1), word("b", 1.9, 2), word("c", 3.1, 4)]) == ["a b", "c"]
    assert texts([word("Yes.", 0, 1), word("So", 1.2, 2)]) == ["Yes. So"]
    assert texts([word("Yes.”", 0, 1), word("So", 1.5, 2)]) == ["Yes.”", "So"]


def test_a_monologue_has_paragraphs():
    words = [word("one." if i % 10 == 9 else "one", i, i + 1) for i in range(100)]
    lengths = [len(utterance.words) for utterance in group(words)]
    assert lengths == [30, 30, 30, 10]
    assert texts(words, UtteranceOptions(long_s=1000.0)) == [join_words(words)]


def test_a_word_without_a_space_keeps_its_place_in_the_text():
    words = [word("well", 0, 1, "A"), word("-known", 1, 2, "B", joined=True)]
    found = build(words, duration=3, language="en")
    assert found.text == "well-known"
    assert [u.text for u in found.utterances] == ["well", "-known"]
    assert Transcript.from_json(found.to_json()) == found


# --- files ------------------------------------------------------------------------------------------------------------


def test_write_takes_the_format_from_the_suffix(transcript, tmp_path):
    transcript.write(tmp_path / "a.JSON")
    assert Transcript.from_json((tmp_path / "a.JSON").read_bytes()) == transcript
    transcript.write(str(tmp_path / "b.out"), "srt")
    assert (tmp_path / "b.out").read_text(encoding="utf-8").startswith("1\n00:00:00,500 --> 00:00:01,200\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.JSON", "b.out"]


@pytest.mark.parametrize(("name", "form"), [("a.doc", None), ("a", None), ("a.txt", "pdf")])
def test_unknown_formats_are_named(transcript, tmp_path, name, form):
    with pytest.raises(OptionError, match="is not one of txt, srt"):
        transcript.write(tmp_path / name, form)
    assert list(tmp_path.iterdir()) == []


def test_errors_are_diarists(transcript):
    with pytest.raises(DiaristError):
        Transcript.from_json("{")
