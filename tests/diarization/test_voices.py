"""Voices known by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diarist.diarization.voices import SAME_VOICE, recognize_voices


def voice(*places: float) -> np.ndarray:
    """An embedding that points so much along the first axes."""
    return np.array([*places, *[0.0] * (256 - len(places))], np.float32)


def test_the_likest_gets_the_name_and_the_other_keeps_its_number():
    speakers = np.stack([voice(0.8, 0.6), voice(1.0, 0.1)])
    assert recognize_voices(["A", "B"], speakers, {"Ada": voice(1.0)}) == {"B": "Ada"}


def test_two_names_for_two_speakers_even_if_one_is_like_both():
    speakers = np.stack([voice(1.0, 0.9), voice(0.1, 1.0)])
    known = {"Ada": voice(1.0, 0.2), "Ben": voice(0.3, 1.0)}
    assert recognize_voices(["A", "B"], speakers, known) == {"A": "Ada", "B": "Ben"}


def test_a_stranger_is_never_given_a_name():
    assert recognize_voices(["A"], voice(0.55, 1.0)[None], {"Ada": voice(1.0)}) == {}
    assert recognize_voices(["A"], np.zeros((1, 256), np.float32), {"Ada": voice(1.0)}) == {}


def test_a_stranger_does_not_take_the_name_of_one_who_is_known():
    """The best sum of similarities would pair both wrongly; what is below the threshold counts nothing."""
    speakers = np.stack([voice(0.9, 0.1, 0.2), voice(0.58, 0.2, 0.9)])
    known = {"Ada": voice(1.0), "Ben": voice(0.6, 0.0, 0.75)}
    assert recognize_voices(["A", "B"], speakers, known) == {"A": "Ada", "B": "Ben"}
    assert recognize_voices(["A", "B"], speakers, {"Ada": voice(1.0)}) == {"A": "Ada"}


@pytest.mark.parametrize(("speakers", "known"), [([], {"Ada": voice(1.0)}), (["A"], {})])
def test_nobody_is_recognized_where_there_is_nobody(speakers, known):
    assert recognize_voices(speakers, np.ones((len(speakers), 256), np.float32), known) == {}


embeddings = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(8)), elements=st.floats(-1, 1, width=32))


@given(embeddings, embeddings)
def test_no_name_twice_and_none_below_the_threshold(found, known):
    speakers = [f"S{n}" for n in range(len(found))]
    voices = {f"K{n}": row for n, row in enumerate(known)}
    names = recognize_voices(speakers, found, voices)
    assert len(set(names.values())) == len(names)
    for speaker, name in names.items():
        a, b = found[int(speaker[1:])], voices[name]
        assert a @ b / max(float(np.linalg.norm(a)) * float(np.linalg.norm(b)), 1e-30) >= SAME_VOICE - 1e-3
