"""The original's parameters and answer, as its clients know them (R1, R12, R13, R18, R19 are its recorded faults)."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diarist import original, pipeline, request
from diarist.attribution import attribute
from diarist.errors import OptionError
from diarist.timeline import Segment, Turn, Word, join_words
from diarist.transcript import build

TURNS = [Turn(Segment(0.0, 4.0), "SPEAKER_00"), Turn(Segment(4.0, 8.0), "SPEAKER_01")]


def words_of(text, speaker=None, start=0.0, step=0.4):
    return [Word(part, start + i * step, start + i * step + 0.3, 0.9, speaker) for i, part in enumerate(text.split())]


def refused(parameters):
    with pytest.raises(OptionError) as caught:
        original.parse(parameters)
    return caught.value


# --- parameters -----------------------------------------------------------------------------------------------------


def test_defaults_are_the_originals():
    ours = {"return_timestamps", "generation_parameters", "diarize", "initial_prompt", "hotwords", "word_timestamps"}
    assert original.parse({}).model_dump(exclude={*ours, "beam_size", "temperature"}) == {
        "task": "transcribe",
        "batch_size": 24,
        "assisted": False,
        "chunk_length_s": 30,
        "sampling_rate": 16000,
        "language": None,
        "num_speakers": None,
        "min_speakers": None,
        "max_speakers": None,
    }


def test_strings_are_taken_for_what_they_say():
    sent = {"batch_size": "8", "assisted": "false", "chunk_length_s": "15", "num_speakers": "2", "language": "de"}
    config = original.parse(sent)
    assert (config.batch_size, config.assisted, config.chunk_length_s) == (8, False, 15)
    assert (config.num_speakers, config.language) == (2, "de")
    assert original.parse({"assisted": "true"}).assisted is True


@pytest.mark.parametrize("parameters", [None, {}])
def test_r18_null_is_no_parameters(parameters):
    assert original.parse(parameters) == original.InferenceConfig()


@pytest.mark.parametrize("parameters", [[], [1], 3, "x", True, 0.5, b"{}"])
def test_r18_what_is_no_object_is_refused(parameters):
    error = refused(parameters)
    assert error.param == "parameters"
    assert "must be an object" in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("batch_size", value) for value in (0, -1, 257, 10**6, "x", 2.5, math.nan, math.inf, [], {}, True)),
        *(("chunk_length_s", value) for value in (0, 31, "-3")),
        *(("sampling_rate", value) for value in (7999, 192_001)),
        *((name, value) for name in ("num_speakers", "min_speakers", "max_speakers") for value in (0, 65, math.nan)),
        ("task", "summarize"),
        ("assisted", "perhaps"),
        ("language", 7),
        ("language", "x" * 41),
        ("initial_prompt", "x" * 10_001),
        ("temperature", 2.5),
        ("temperature", math.nan),
        ("beam_size", 17),
        ("return_timestamps", "letters"),
        ("generation_parameters", [1]),
    ],
)
def test_r19_out_of_bounds_is_refused_by_name(field, value):
    error = refused({field: value})
    assert error.param == field
    assert str(error).startswith(f"{field}: ")
    assert len(str(error)) < 400


@pytest.mark.parametrize("field", ["batch_size", "chunk_length_s", "sampling_rate", "num_speakers"])
def test_the_bounds_themselves_are_taken(field):
    for value in {"batch_size": (1, 256), "chunk_length_s": (1, 30), "sampling_rate": (8000, 192_000)}.get(
        field, (1, 64)
    ):
        assert getattr(original.parse({field: value}), field) == value


def test_r19_speaker_counts_must_agree():
    assert refused({"min_speakers": 3, "max_speakers": 2}).param == "max_speakers"
    assert refused({"num_speakers": 5, "max_speakers": 4}).param == "num_speakers"
    assert refused({"num_speakers": 1, "min_speakers": 2}).param == "num_speakers"
    assert original.parse({"num_speakers": 3, "min_speakers": 3, "max_speakers": 3}).num_speakers == 3


def test_the_bounds_are_those_of_a_request():
    assert original.MAX_SPEAKERS == request.MAX_SPEAKERS


def test_r12_assisted_alone_means_one_window_at_a_time():
    config = original.parse({"assisted": True})
    assert config.batch_size == 1
    config.check(assists=True)


def test_assisted_in_batches_is_refused():
    error = refused({"assisted": "true", "batch_size": 24})
    assert error.param == "batch_size"
    assert "must be 1 when assisted generation is on" in str(error)


def test_r13_assisted_needs_an_assistant():
    with pytest.raises(OptionError, match="no assistant model was provided"):
        original.parse({"assisted": True}).check(assists=False)
    original.parse({}).check(assists=False)
    original.parse({"assisted": "auto", "batch_size": 24}).check(assists=False)


def test_every_fault_is_told():
    message = str(refused({"batch_size": 0, "num_speakers": "many", "task": None}))
    assert "batch_size: 0 is refused" in message
    assert "num_speakers: 'many' is refused" in message
    assert "task" not in message


@given(st.text(min_size=1, max_size=300))
def test_what_was_sent_is_shown_short_and_on_one_line(text):
    for message in (str(refused({"task": text + "!"})), *original.parse({text + "!": 1}).warnings):
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 300


def test_unknown_names_are_warned_about():
    config = original.parse({"temprature": 1, "generation_parameters": {"top_k": 5, "num_beams": 2}})
    assert config.warnings == ["unknown parameters were ignored: 'temprature', 'generation_parameters.top_k'"]
    many = original.parse({f"key{number}": 1 for number in range(20)})
    assert many.warnings[0].endswith("'key7' and 12 more")
    assert original.parse({"task": "translate"}).warnings == []


def test_names_of_methods_are_only_unknown_names():
    config = original.parse({"unknown": 1, "options": 2, "model_config": 3, "model_extra": 4, "__class__": 5})
    assert len(config.unknown) == 5
    assert config.options()["task"] == "transcribe"


@pytest.mark.parametrize("name", ["generation_parameters", "generate_kwargs"])
def test_the_clients_generation_parameters(name):
    options = original.parse({name: {"num_beams": "4", "temperature": 0, "do_sample": None}}).options()
    assert (options["beam_size"], options["temperature"]) == (4, 0.0)
    error = refused({name: {"temperature": 2.5}})
    assert error.param == "generation_parameters.temperature"


def test_two_names_for_generation_parameters():
    both = {"generation_parameters": None, "generate_kwargs": {"num_beams": 3}}
    assert original.parse(both).options()["beam_size"] == 3
    both["generation_parameters"] = {"num_beams": 2}
    assert original.parse(both).options()["beam_size"] == 2


def test_options_are_those_of_the_pipeline():
    config = original.parse({"language": "en", "task": "translate", "min_speakers": 1, "max_speakers": 3})
    assert config.options() == {
        "task": "translate",
        "language": "en",
        "num_speakers": None,
        "min_speakers": 1,
        "max_speakers": 3,
        "diarize": None,
        "initial_prompt": None,
        "hotwords": None,
        "word_timestamps": True,
        "beam_size": 1,
        "temperature": None,
    }
    assert set(config.options()) <= set(pipeline.Pipeline.__call__.__kwdefaults__)


def test_blank_text_is_not_sent():
    config = original.parse({"language": "", "num_speakers": " ", "initial_prompt": "", "hotwords": ""})
    assert config.options() == original.parse({}).options()


def test_generation_parameters_win_over_what_is_outside():
    inner = {"temperature": 0, "num_beams": 2, "language": "de", "task": "translate"}
    outer = {"temperature": 1, "beam_size": 5, "language": "en"}
    options = original.parse({**outer, "generate_kwargs": inner}).options()
    assert [options[name] for name in ("temperature", "beam_size", "language", "task")] == [0, 2, "de", "translate"]
    assert original.parse(outer).options()["beam_size"] == 5


@pytest.mark.parametrize("text", ["", "  ", b""])
def test_an_empty_text_part_is_none(text):
    assert original.read(text) == {}


@pytest.mark.parametrize("text", ["{", "{'a': 1}", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, b"\xff\xfe{"])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError):
        original.read(text)


def test_numbers_beyond_all_bounds_are_refused_by_the_field():
    assert refused(original.read('{"batch_size": 1e999}')).param == "batch_size"


NOTHING_ASKED = original.parse({})

# --- the answer -----------------------------------------------------------------------------------------------------


def diarized(words, turns, **fields):
    attributed = attribute(words, turns).words
    made = {"duration": 8.0, "language": "en", "turns": turns, "models": {"diarization": {"name": "x"}}}
    return build(attributed, **{**made, **fields})


def test_the_answer_has_the_originals_keys():
    words = [*words_of("Good morning. How are you?"), *words_of("Fine, thanks.", start=4.5)]
    reply = original.answer(diarized(words, TURNS, warnings=["first"]), original.parse({"secnod": 1}))
    assert reply["text"] == "Good morning. How are you? Fine, thanks."
    assert reply["speakers"] == [
        {"speaker": "SPEAKER_00", "text": " Good morning. How are you?", "timestamp": [0.0, 1.9]},
        {"speaker": "SPEAKER_01", "text": " Fine, thanks.", "timestamp": [4.5, 5.2]},
    ]
    assert [chunk["text"] for chunk in reply["chunks"]] == [" Good morning.", " How are you?", " Fine, thanks."]
    assert reply["chunks"][1]["timestamp"] == [0.8, 1.9]
    assert reply["warnings"] == ["first", "unknown parameters were ignored: 'secnod'"]
    assert reply["words"][0] == {
        "text": "Good", "start": 0.0, "end": 0.3, "probability": 0.9, "speaker": "SPEAKER_00",
    }  # fmt: skip
    assert [part["text"] for part in reply["utterances"]] == ["Good morning. How are you?", "Fine, thanks."]
    assert reply["turns"] == [
        {"speaker": "SPEAKER_00", "start": 0.0, "end": 4.0},
        {"speaker": "SPEAKER_01", "start": 4.0, "end": 8.0},
    ]
    assert (reply["language"], reply["duration"]) == ("en", 8.0)


def test_chunks_may_be_words():
    words = [*words_of("A U.S."), Word("-led one.", 1.0, 1.5, 0.9, joined=True), *words_of("Yes.", start=1.6)]
    found = diarized(words, TURNS)
    reply = original.answer(found, original.parse({"return_timestamps": "word"}))
    assert [chunk["text"] for chunk in reply["chunks"]] == [" A", " U.S.", "-led one.", " Yes."]
    for plain in (True, False, None):
        reply = original.answer(found, original.parse({"return_timestamps": plain}))
        assert [chunk["text"] for chunk in reply["chunks"]] == [" A U.S.-led one.", " Yes."]


def test_without_diarization_there_are_no_speakers():
    reply = original.answer(build(words_of("Good morning."), duration=2.0, language="en"), NOTHING_ASKED)
    assert reply["speakers"] == []
    assert reply["chunks"] == [{"text": " Good morning.", "timestamp": [0.0, 0.7]}]
    assert reply["words"][0]["speaker"] is None


def test_r1_words_where_nobody_was_heard_are_kept():
    reply = original.answer(diarized(words_of("Good morning."), []), NOTHING_ASKED)
    assert [part["speaker"] for part in reply["speakers"]] == ["UNKNOWN"]
    assert reply["speakers"][0]["text"] == " Good morning."


@pytest.mark.parametrize("turns", [[], TURNS])
def test_r1_r2_silence(turns):
    reply = original.answer(diarized([], turns, language=None), NOTHING_ASKED)
    assert (reply["speakers"], reply["chunks"], reply["text"]) == ([], [], "")


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b.", "c,", "d?", "。", "über", "-e"]), st.booleans(), st.floats(0, 1)),
        max_size=30,
    )
)
def test_both_lists_hold_the_whole_text(parts):
    words, at = [], 0.0
    for text, joined, pause in parts:
        words.append(Word(text, at + pause, at + pause + 0.1, 0.5, joined=joined))
        at += pause + 0.1
    reply = original.answer(diarized(words, TURNS, duration=at + 8.0), NOTHING_ASKED)
    for name in ("speakers", "chunks"):
        assert "".join(part["text"] for part in reply[name]).strip() == reply["text"]
        assert all(isinstance(time, float) for part in reply[name] for time in part["timestamp"])
    assert reply["text"] == join_words(words)
    json.dumps(reply, allow_nan=False)


@pytest.mark.parametrize("sent", [True, False, "auto"])
def test_assisting_is_left_to_the_engine_unless_the_caller_says(sent):
    assert original.parse({"assisted": sent}).options()["assisted"] is sent
    assert "assisted" not in original.parse({}).options()
