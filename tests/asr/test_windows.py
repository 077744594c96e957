import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist.asr.features import SAMPLE_RATE_HZ, WINDOW_S
from diarist.asr.windows import Window, WindowOptions, gather, holes, pack, quietest
from diarist.timeline import Segment, subtract, union

OPTIONS = WindowOptions()


@st.composite
def speech_tracks(draw):
    """Disjoint speech with gaps and lengths of all sizes, and the length of the recording."""
    at, track = 0.0, []
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.floats(0.01, 40))
        length = draw(st.floats(0.05, 70))
        track.append(Segment(at, at + length))
        at += length
    return track, at + draw(st.floats(0, 5))


@settings(deadline=None, max_examples=60)
@given(speech_tracks(), st.floats(0, 1000))
def test_no_speech_is_lost_and_no_window_is_too_long(track_and_length, offset):
    track, length = track_and_length
    track = [segment.shifted(offset) for segment in track]
    waveform = np.random.default_rng(0).normal(size=int(length * SAMPLE_RATE_HZ) + 1).astype(np.float32)
    windows = pack(track, waveform, offset, OPTIONS)
    assert all(0 < window.duration <= WINDOW_S + 1e-6 for window in windows)
    pieces = [piece for window in windows for piece in window.pieces]
    assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(pieces))
    lost = sum(segment.duration for segment in subtract(track, union(pieces, max_gap=1e-6)))
    assert lost < 1e-3
    for window in windows:
        assert abs(len(gather(window, waveform, offset)) / SAMPLE_RATE_HZ - window.duration) < 1e-3


def test_windows_are_cut_at_pauses_and_filled():
    track = [Segment(2.0 * n, 2.0 * n + 1.6) for n in range(60)]
    windows = pack(track, np.zeros(120 * SAMPLE_RATE_HZ, np.float32), 0.0, OPTIONS)
    assert len(windows) == 4
    for window in windows[:-1]:
        assert window.duration > 26
        assert not any(segment.start < window.span.end < segment.end for segment in track)


def test_long_silence_is_taken_out():
    track = [Segment(10, 15), Segment(300, 305)]
    (window,) = pack(track, np.zeros(400 * SAMPLE_RATE_HZ, np.float32), 0.0, OPTIONS)
    assert len(window.pieces) == 2
    assert window.duration == pytest.approx(10 + 4 * OPTIONS.margin_s + OPTIONS.max_silence_s)


def test_speech_without_a_pause_is_cut_where_it_is_quietest():
    waveform = np.ones(45 * SAMPLE_RATE_HZ, np.float32)
    waveform[int(26.3 * SAMPLE_RATE_HZ) : int(26.5 * SAMPLE_RATE_HZ)] = 0
    first, _ = pack([Segment(0, 45)], waveform, 0.0, OPTIONS)
    assert first.span.end == pytest.approx(26.4, abs=0.06)
    assert quietest(waveform, Segment(20, 30)) == pytest.approx(26.35, abs=0.06)


def test_times_map_back_piece_by_piece_and_cuts_agree():
    window = Window((Segment(10, 12), Segment(20, 25), Segment(40, 41)))
    assert [window.locate(t) for t in (0, 1.9, 2, 6.9, 7, 8)] == pytest.approx([10, 11.9, 20, 24.9, 40, 41])
    assert window.locate(7, ending=True) == 25
    part = window.cut(1, 7.5)
    assert part.pieces == (Segment(11, 12), Segment(20, 25), Segment(40, 40.5))
    assert part.locate(1.5) == window.locate(2.5)
    assert window.speech_inside([Segment(11, 21), Segment(40.5, 60)]) == [Segment(1, 3), Segment(7.5, 8)]


def test_holes_are_speech_without_text():
    speech = [Segment(0, 10), Segment(12, 20)]
    assert holes(speech, [Segment(0, 4), Segment(4.8, 15)], OPTIONS) == [Segment(15, 20)]
    assert holes(speech, [], OPTIONS) == speech
