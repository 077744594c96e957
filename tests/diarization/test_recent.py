"""The recent rows of an endless table, against one that forgets nothing; and that they stay few."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from diarist.diarization import extraction
from diarist.diarization.extraction import Extractor
from diarist.diarization.recent import Recent

steps = st.lists(st.tuples(st.integers(0, 9), st.integers(-2, 30), st.integers(0, 30)), max_size=40)


@given(steps)
def test_what_is_kept_is_what_came(steps):
    recent, whole = Recent(2), torch.zeros(0, 2)
    for count, forgotten, reach in steps:
        rows = torch.arange(2.0 * count).view(count, 2) + len(whole)
        recent.append(rows)
        whole = torch.cat([whole, rows])
        assert recent.stop == len(whole)
        assert torch.equal(recent.cut(recent.start, recent.start + reach), whole[recent.start : recent.start + reach])
        before = recent.start
        recent.forget(forgotten)
        assert recent.start == max(before, min(forgotten, len(whole)))
    assert torch.equal(recent.cut(recent.start, recent.stop), whole[recent.start :])


class Trunk:
    """A speaker network without weights."""

    device = torch.device("cpu")

    def trunk(self, features):
        return features[::8].repeat(1, 32)

    def pool(self, trunk, masks):
        return (masks @ trunk)[:, :256]


def test_sound_of_a_long_recording_is_let_go(monkeypatch):
    """Ten times the length, the same rows kept: features of two chunks and what lies around them."""
    monkeypatch.setattr(extraction, "_CHUNK", 60)
    held = []
    extractor = Extractor(Trunk(), lambda _, first, stop: np.zeros(stop - first, bool))
    sound, spoken = torch.randn(160_000), np.ones((10, 589, 3), np.uint8)
    for block in range(150):
        extractor.push(sound)
        if block:
            extractor.expect([(block - 1) * 160_000 + window * 16_000 for window in range(10)], spoken)
        kept = extractor._features
        held.append((kept.stop - kept.start, len(kept._room)))
    assert len(extractor.embeddings()) == 1490
    early, late = np.max(held[:30], axis=0), np.max(held[30:], axis=0)
    assert late[0] <= early[0]
    assert late[1] <= 2 * early[0]
