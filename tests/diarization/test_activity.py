import numpy as np

from diarist.diarization import activity as activity_module
from diarist.diarization.activity import FrameMean, local_activity, pooling_masks, reconstruct, runs, speaker_count
from diarist.diarization.frames import FRAMES, frame_time, window_frame
from diarist.timeline import Segment


def activity(*stretches: tuple[int, int, int]) -> np.ndarray:
    local = np.zeros((FRAMES, 3), np.uint8)
    for speaker, start, stop in stretches:
        local[start:stop, speaker] = 1
    return local


def test_classes_are_sets_of_speakers():
    assert local_activity(np.eye(7)).tolist() == [
        [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1],
    ]  # fmt: skip


def test_overlap_is_left_out_of_masks_unless_there_is_nothing_else():
    masks = pooling_masks(np.stack([activity((0, 0, 100), (1, 60, 200)), activity((0, 0, 100), (1, 0, 100))]))
    assert masks[0, :, 0].sum() == 60
    assert masks[0, :, 1].sum() == 100
    assert masks[1, :, 0].sum() == 100


def test_runs_go_from_middle_to_middle():
    assert runs(np.array([True, True, False, True]), 10) == [
        Segment(frame_time(10), frame_time(12)),
        Segment(frame_time(13), frame_time(14)),
    ]
    assert runs(np.zeros(5, bool)) == []


def test_means_over_windows_in_any_order():
    mean = FrameMean()
    mean.add(1000, np.ones(FRAMES, np.float32))
    mean.add(0, np.zeros(FRAMES, np.float32))
    mean.add(1100, np.zeros(FRAMES, np.float32))
    values = mean.mean(0, 1700)
    assert values[0] == 0
    assert values[1050] == 1
    assert values[1150] == 0.5


def test_the_same_person_under_two_local_names_is_one_speaker():
    """Two windows hear one turn and an overlap; the second window numbers the people the other way round."""
    hop = window_frame(1, 1.0)
    first = activity((0, 100, 400), (1, 300, 500))
    second = activity((1, 100 - hop, 400 - hop), (0, 300 - hop, 500 - hop))
    labels = np.array([[0, 1, -1], [1, 0, -1]])
    overlapping, exclusive = reconstruct([first, second], labels, 1.0, 3)
    assert np.flatnonzero(overlapping[:, 0]).tolist() == list(range(100, 400))
    assert np.flatnonzero(overlapping[:, 1]).tolist() == list(range(300, 500))
    assert exclusive.sum(axis=1).max() == 1
    assert (exclusive.any(axis=1) == overlapping.any(axis=1)).all()
    assert speaker_count([first, second], 1.0).max() == 2


def test_frames_are_ranked_alike_however_many_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 2, (40, FRAMES, 3), np.uint8)
    labels = rng.integers(-1, 6, (40, 3))
    whole = reconstruct(list(windows), labels, 1.0, 3)
    monkeypatch.setattr(activity_module, "_RANKED", 117)
    for one, other in zip(whole, reconstruct(list(windows), labels, 1.0, 3), strict=True):
        assert (one == other).all()
        assert one.any()
