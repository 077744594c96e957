"""The recent rows of an endless table, against one that forgets nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

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
