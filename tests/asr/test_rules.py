"""The batched rules against a plain transcription of openai-whisper's filters, one row at a time."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist.asr.rules import RuleState, allowed_log_probabilities, greedy, packed_state, sample

END, BEGIN, SIZE, BLANK = 40, 50, 50 + 1501, 7
VOCABULARY = SimpleNamespace(end=END, timestamp_begin=BEGIN)


def filtered(logits: torch.Tensor, written: list[int], *, timestamps: bool) -> torch.Tensor:
    """Log-probabilities after SuppressBlank and ApplyTimestampRules."""
    logits = logits.clone()
    logits[END + 1 : BEGIN] = -torch.inf
    if not written:
        logits[[BLANK, END]] = -torch.inf
    if not timestamps:
        logits[BEGIN:] = -torch.inf
        return logits.log_softmax(-1)
    last = bool(written) and written[-1] >= BEGIN
    before = len(written) < 2 or written[-2] >= BEGIN
    if last and before:
        logits[BEGIN:] = -torch.inf
    elif last:
        logits[:END] = -torch.inf
    stamps = [token for token in written if token >= BEGIN]
    if stamps:
        logits[BEGIN : stamps[-1] + (0 if last and not before else 1)] = -torch.inf
    if not written:
        logits[:BEGIN] = -torch.inf
        logits[BEGIN + 51 :] = -torch.inf
    logprobs = logits.log_softmax(-1)
    if logprobs[BEGIN:].logsumexp(-1) > logprobs[:BEGIN].max():
        logits[:BEGIN] = -torch.inf
    return logits.log_softmax(-1)


def state_after(written: list[int], *, timestamps: bool) -> RuleState:
    state = RuleState.start(torch.tensor([timestamps]))
    for token in written:
        state = state.after(torch.tensor([token]), BEGIN)
    return state


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.one_of(st.integers(0, END - 1), st.integers(BEGIN, BEGIN + 40)), max_size=6),
            st.booleans(),
            st.floats(-8, 8),
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**31),
)
def test_equal_to_the_plain_rules(rows, seed):
    rows = [([t for t in written if stamps or t < BEGIN], stamps, lift) for written, stamps, lift in rows]
    logits = torch.randn(len(rows), SIZE, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, END + 1 : BEGIN] = -torch.inf  # the suppression bias has been added
    for row, (_, _, lift) in enumerate(rows):
        logits[row, BEGIN:] += lift  # text or timestamps likelier, or balanced
    states = RuleState.join([state_after(written, timestamps=stamps) for written, stamps, _ in rows])
    tokens, logprobs = greedy(logits, states, VOCABULARY, (BLANK,))
    whole = allowed_log_probabilities(logits, states, VOCABULARY, (BLANK,))
    for row, (written, stamps, _) in enumerate(rows):
        stamped = [True, *(token >= BEGIN for token in written)]  # the beginning counts as one
        if stamps and any(all(stamped[i : i + 3]) for i in range(len(stamped) - 2)):
            continue  # a pair is never followed by a third
        expected = filtered(logits[row], written, timestamps=stamps)
        if not torch.isfinite(expected).any():
            continue  # an impossible past, such as a timestamp at the very end of the range
        assert int(tokens[row]) == int(expected.argmax())
        assert float(logprobs[row]) == pytest.approx(float(expected.max()), abs=1e-4)
        torch.testing.assert_close(whole[row], expected, atol=1e-4, rtol=0)


def test_sampling_obeys_the_rules_and_follows_the_distribution():
    states = RuleState.join([state_after([BEGIN, 3], timestamps=True)] * 4000)
    logits = torch.full((4000, SIZE), -torch.inf)
    logits[:, [3, 5, BEGIN]] = torch.tensor([2.0, 1.0, 9.0])  # the timestamp would go back
    heat = torch.full((4000,), 0.5)
    tokens, logprobs = sample(logits, states, VOCABULARY, heat, torch.Generator().manual_seed(1))
    assert set(tokens.tolist()) == {3, 5}
    share = float((tokens == 3).float().mean())
    assert share == pytest.approx(float(torch.tensor(2.0).sigmoid()), abs=0.03)  # e^4 / (e^4 + e^2)
    assert float(logprobs[tokens == 3][0]) == pytest.approx(float(torch.tensor(1.0).sigmoid().log()), abs=1e-4)


@given(
    stamps=st.booleans(),
    seed=st.integers(0, 2**31),
    length=st.integers(0, 12),
)
def test_a_state_can_be_told_from_what_was_written(stamps, seed, length):
    written: list[int] = []
    chain = RuleState.start(torch.tensor([stamps]))
    generator = torch.Generator().manual_seed(seed)
    while len(written) < length:
        logits = torch.randn(1, SIZE, generator=generator) * 3
        logits[:, BEGIN:] += 2.0  # timestamps often enough
        token, _ = greedy(logits, chain, VOCABULARY)
        written.append(int(token))
        chain = chain.after(token, BEGIN)
    told = RuleState.unpacked(torch.tensor([packed_state(written, BEGIN, timestamps=stamps)]))
    for name in RuleState.__slots__:
        assert getattr(told, name).tolist() == getattr(chain, name).tolist(), name
