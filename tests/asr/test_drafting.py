"""Assisted decoding writes what plain decoding writes: on toy models of any shape, and on real speech."""

import dataclasses

import pytest
import torch
from drafting_toys import (
    CHEAP,
    DEAR,
    EXACT,
    RememberingEncoder,
    Scripted,
    follower,
    margin,
    run,
    some_layers,
    texts,
    toy_checkpoint,
    toy_loop,
    toy_options,
    toy_windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from diarist import native
from diarist.asr.decoding import DecodingLoop, Job, SpokenLanguage
from diarist.asr.drafting import DecoderAssistant, NgramAssistant, shares_encoder
from diarist.asr.options import DecodingOptions
from diarist.asr.planning import MAX_DRAFT, Assistance
from diarist.compute import choose as choose_compute
from diarist.errors import OptionError
from diarist.models import load_whisper


def said(decoded):
    return [(one.tokens, one.complete) for one in decoded]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    rows=st.integers(1, 16),
    number=st.integers(1, 20),
    language=st.sampled_from(["en", "en", None]),
    room=st.integers(1, 30),
    context=st.integers(40, 64),
    assistant_layers=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    lies=st.lists(st.one_of(st.none(), st.integers(0, MAX_DRAFT)), min_size=1, max_size=7),
)
def test_toy_models_write_the_same(seed, layers, rows, number, language, room, context, assistant_layers, lies):
    """Rows of any number that end at different times, drafts that go wrong anywhere, windows that wait for rows."""
    checkpoint = toy_checkpoint(seed, layers, context=context)
    windows, options = toy_windows(seed, number, checkpoint), toy_options(number, room, language=language)
    plain_loop = toy_loop(checkpoint, rows)
    plain = run(plain_loop, windows, options)
    script = texts(plain_loop, options, plain)
    part = [layer % layers for layer in assistant_layers]
    assistants = [
        Scripted(script, lambda n: lies[n % len(lies)]),
        NgramAssistant(),
        DecoderAssistant(some_layers(checkpoint, part), checkpoint, EXACT),
        DecoderAssistant(follower(checkpoint, part, seed), checkpoint, EXACT),
    ]
    for assistant in assistants:
        drafted = run(toy_loop(checkpoint, rows, assistant), windows, options)
        assert said(drafted) == said(plain)
        for one, other in zip(drafted, plain, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            complete = len(one.starts) if one.complete else len(one.starts) - 1  # nothing was read after a cut text
            assert one.starts[:complete] == other.starts[:complete]


@pytest.fixture(scope="module")
def toy():
    """Model, windows, options, what they say, and the script of it."""
    checkpoint = toy_checkpoint(3, context=64)
    windows, options = toy_windows(1, 12, checkpoint), toy_options(12, 30)
    loop = toy_loop(checkpoint, 4)
    plain = run(loop, windows, options)
    assert len({len(one.tokens) for one in plain}) > 3
    return checkpoint, windows, options, plain, texts(loop, options, plain), loop._decoder.calls


def test_an_assistant_that_is_always_right(toy):
    checkpoint, windows, options, plain, script, calls = toy
    loop, assistance = toy_loop(checkpoint, 4, Scripted(script)), Assistance()
    assert said(run(loop, windows, options, assistance)) == said(plain)
    assert assistance.accepted == assistance.drafted > 0
    assert assistance.summary["tokens_per_pass"] > 3
    assert assistance.summary["chosen"] == "assisted"
    assert loop._decoder.calls < 0.5 * calls


def test_an_assistant_that_is_always_wrong(toy):
    """Not one pass more than without it; left the choice, it is soon not asked any more."""
    checkpoint, windows, options, plain, script, calls = toy
    loop, assistance = toy_loop(checkpoint, 4, Scripted(script, lambda _: 0)), Assistance()
    assert said(run(loop, windows, options, assistance)) == said(plain)
    assert (assistance.accepted, assistance.summary["tokens_per_pass"]) == (0, 1.0)
    assert loop._decoder.calls == calls
    costs = dataclasses.replace(CHEAP, passes=((1.0, 3.0), (1.0, 3.0)), drafts=(0.2, 0.2))
    loop, assistance = toy_loop(checkpoint, 4, Scripted(script, lambda _: 0), costs), Assistance()
    chosen = [dataclasses.replace(option, assisted="auto") for option in options]
    assert said(run(loop, windows, chosen, assistance)) == said(plain)
    assert 0 < assistance.assisted < 0.3 * assistance.passes


def test_it_is_as_asked(toy):
    checkpoint, windows, options, plain, script, _ = toy
    for asked, costs, share in (("auto", DEAR, 0), ("auto", CHEAP, 0.7), (False, CHEAP, 0), (True, DEAR, 0.7)):
        assistance = Assistance()
        chosen = [dataclasses.replace(option, assisted=asked) for option in options]
        assert said(run(toy_loop(checkpoint, 4, Scripted(script), costs), windows, chosen, assistance)) == said(plain)
        assert (assistance.assisted > 0.5 * assistance.passes) == (share > 0)


def test_rows_with_and_without_drafts_share_a_batch(toy):
    checkpoint, windows, options, plain, script, _ = toy
    mixed = [dataclasses.replace(option, assisted=index % 2 == 0) for index, option in enumerate(options)]
    loop = toy_loop(checkpoint, 6, Scripted(script, lambda n: n % 5))
    assert said(run(loop, windows, mixed)) == said(plain)


def test_sampled_rows_are_not_drafted_for(toy):
    checkpoint, windows, options, *_ = toy
    doubtful = dataclasses.replace(
        options[0], temperatures=(0.0, 0.7, 1.0), logprob_threshold=0.0, no_speech_threshold=1.0
    )
    plain = run(toy_loop(checkpoint, 1), windows[:1], doubtful)
    assistance = Assistance()
    assistant = DecoderAssistant(some_layers(checkpoint, [0]), checkpoint, EXACT)
    drafted = run(toy_loop(checkpoint, 1, assistant), windows[:1], doubtful, assistance)
    assert said(drafted) == said(plain)
    assert drafted[0].temperature == 1.0
    assert 0 < assistance.assisted < assistance.passes


def test_a_loop_that_restarts_forgets_its_drafts(toy):
    checkpoint, windows, options, plain, *_ = toy
    loop = toy_loop(checkpoint, 4, DecoderAssistant(some_layers(checkpoint, [1, 0]), checkpoint, EXACT))
    results = {}
    for index, (window, option) in enumerate(zip(windows, options, strict=True)):
        loop.submit(Job(window, option, SpokenLanguage("en"), lambda d, i=index: results.setdefault(i, d)))
    for _ in range(4):
        loop.step()
    loop.restart(2)
    while loop.pending:
        loop.step()
    assert said([results[index] for index in range(len(windows))]) == said(plain)


def test_siblings_have_drafters_of_their_own(toy):
    checkpoint, windows, options, plain, *_ = toy
    loop = toy_loop(checkpoint, 4, DecoderAssistant(some_layers(checkpoint, [0]), checkpoint, EXACT))
    other = loop.sibling(2, 1)
    assert other._drafter is not loop._drafter
    assert said(run(other, windows, options)) == said(plain)


@torch.inference_mode()
def test_a_follower_reads_what_the_main_decoder_knew(toy):
    """Each token of the text with the state it was chosen from, wherever rows and drafts have moved meanwhile."""
    checkpoint, windows, options, plain, script, _ = toy
    assistant = DecoderAssistant(follower(checkpoint, [0], 5), checkpoint, EXACT)
    loop = toy_loop(checkpoint, 4, assistant)
    decoder, feed, checked = loop._decoder, loop._drafter._feed, 0
    expected = {}
    for window, text in zip(windows, script, strict=True):
        scratch = toy_loop(checkpoint, 1)
        scratch._decoder.fill_cross_attention(scratch._encoder(window[None].float()), scratch._cache, 0)
        hidden = scratch._decoder(torch.tensor([text[:-1]]), torch.tensor([0]), scratch._cache, slice(0, 1))[0]
        expected[tuple(text)] = torch.cat([torch.zeros(1, hidden.shape[1]), hidden])

    def checking(tokens, starts, rows):
        nonlocal checked
        for row, (some, start) in enumerate(zip(tokens, starts, strict=True), rows.start):
            read = [*loop._active[row].prompt, *loop._active[row].tokens][: start + len(some)]
            found = next(states for text, states in expected.items() if list(text[: len(read)]) == read)
            kept = loop._cache.hidden_before[row, start : start + len(some)]
            torch.testing.assert_close(kept, found[start : start + len(some)], atol=1e-6, rtol=1e-6)
            checked += len(some)
        return feed(tokens, starts, rows)

    loop._drafter._feed = checking
    assert said(run(loop, windows, options)) == said(plain)
    assert decoder.calls > 0
    assert checked > sum(len(one.tokens) for one in plain) / 2


def test_calibration_measures_every_part(toy):
    checkpoint = toy[0]
    short = dataclasses.replace(checkpoint.dims, n_text_ctx=80)
    tensors = dict(checkpoint.tensors) | {"decoder.positional_embedding": torch.randn(80, 8, dtype=torch.float64)}
    roomy = dataclasses.replace(checkpoint, dims=short, tensors=tensors)
    loop = DecodingLoop(roomy, EXACT, 4, assistant=DecoderAssistant(some_layers(roomy, [0]), roomy, EXACT))
    assert loop.costs.rows == (1, 4)
    assert all(seconds > 0 for row in loop.costs.passes for seconds in row)
    assert all(loop.costs.draft(rows, 1) > 0 for rows in loop.costs.rows)
    assert loop.active == loop.pending == 0


# --- what an assistant shares with the main model ---


def test_an_equal_encoder_and_equal_cross_attention_are_shared():
    checkpoint = toy_checkpoint(0, layers=3)
    part = some_layers(checkpoint, [2, 0])
    part.tensors["decoder.blocks.1.cross_attn.key.weight"] = part.tensors["decoder.blocks.1.cross_attn.key.weight"] + 1
    assistant = DecoderAssistant(part, checkpoint, EXACT)
    assert (assistant.encodes, assistant.borrowed) == (False, {0: 2})
    loop = toy_loop(checkpoint, 2, assistant)
    cache = loop._drafter._cache
    assert cache.cross_keys[0] is loop._cache.cross_keys[2]
    assert cache.own_cross == [1]


def test_an_encoder_is_compared_in_the_coarser_type():
    checkpoint = toy_checkpoint(0)
    half = dataclasses.replace(checkpoint, tensors={name: t.half() for name, t in checkpoint.tensors.items()})
    assert shares_encoder(half, checkpoint)
    other = dict(half.tensors) | {"encoder.conv1.bias": half.tensors["encoder.conv1.bias"] + 1}
    assert not shares_encoder(dataclasses.replace(half, tensors=other), checkpoint)


def test_a_decoder_without_an_encoder_must_fit():
    checkpoint = toy_checkpoint(0)
    alone = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("encoder.")}
    assert shares_encoder(dataclasses.replace(checkpoint, tensors=alone), checkpoint)
    with pytest.raises(OptionError, match="does not fit"):
        shares_encoder(dataclasses.replace(checkpoint, tensors=alone), toy_checkpoint(0, width=16))


# --- real speech ---


@pytest.fixture(scope="module")
def tiny_en(tiny_en_model):
    return load_whisper(tiny_en_model)


@pytest.fixture(scope="module")
def speech(utterances, sample_waveform):
    """Short and long windows, so that rows end at different times."""
    chosen = sorted((waveform for waveform, _ in utterances.values()), key=len)
    return [sample_waveform, *chosen[:10:2]]


@pytest.fixture(scope="module")
def real_loop(checkpoint):
    """Makes loops of one precision that share what was encoded."""
    encoders = {}

    def make(dtype, assistant=None, rows=5):
        loop = DecodingLoop(checkpoint, choose_compute("cpu", dtype), rows, 4, assistant=assistant, costs=CHEAP)
        loop._encoder = encoders.setdefault(dtype, RememberingEncoder(loop._encoder))
        return loop

    return make


GREEDY = DecodingOptions("en", temperatures=(0.0,), assisted=True)


@pytest.fixture(scope="module")
def plainly(real_loop, speech):
    return {dtype: run(real_loop(dtype), speech, GREEDY) for dtype in ("float32", "bfloat16")}


@pytest.mark.parametrize("kind", ["ngram", "tiny.en", "layers"])
def test_speech_is_written_the_same(real_loop, checkpoint, tiny_en, speech, plainly, kind):
    compute = choose_compute("cpu", "float32")
    assistant = {
        "ngram": NgramAssistant,
        "tiny.en": lambda: DecoderAssistant(tiny_en, checkpoint, compute),
        "layers": lambda: DecoderAssistant(some_layers(checkpoint, [0, 5]), checkpoint, compute),
    }[kind]()
    assistance = Assistance()
    drafted = run(real_loop("float32", assistant), speech, GREEDY, assistance)
    assert said(drafted) == said(plainly["float32"])
    for one, other in zip(drafted, plainly["float32"], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert one.starts == pytest.approx(other.starts, abs=0.041)
    if kind == "tiny.en":
        assert assistance.summary["acceptance_rate"] > 0.5
        assert assistance.summary["tokens_per_pass"] > 2
    if kind == "layers":
        assert assistant.borrowed == {0: 0, 1: 5}
        assert assistance.drafted > 0


@pytest.mark.skipif(not native.is_available(), reason="no C compiler, or no AVX2")
@pytest.mark.parametrize("kind", ["ngram", "tiny.en"])
def test_in_8_bits_not_a_digit_differs(real_loop, checkpoint, tiny_en, speech, kind):
    compute = choose_compute("cpu", "int8")
    assistant = NgramAssistant() if kind == "ngram" else DecoderAssistant(tiny_en, checkpoint, compute)
    assistance, loop = Assistance(), real_loop("int8", assistant)
    drafted = run(loop, speech, GREEDY, assistance)
    assert drafted == run(real_loop("int8", rows=2), speech, GREEDY)  # log-probabilities and times, too
    assert assistance.drafted > 0
    loop.rest()
    assert drafted == run(loop, speech, GREEDY)


def test_speech_is_written_the_same_without_timestamps(real_loop, checkpoint, tiny_en, speech):
    options = dataclasses.replace(GREEDY, timestamps=False, word_timestamps=False)
    assistant = DecoderAssistant(tiny_en, checkpoint, choose_compute("cpu", "float32"))
    drafted = run(real_loop("float32", assistant, 16), speech[1:], options)
    assert said(drafted) == said(run(real_loop("float32"), speech[1:], options))


def test_an_english_assistant_does_not_translate(real_loop, checkpoint, tiny_en, speech):
    assistance = Assistance()
    assistant = DecoderAssistant(tiny_en, checkpoint, choose_compute("cpu", "float32"))
    run(real_loop("float32", assistant), speech[1:2], dataclasses.replace(GREEDY, language="de"), assistance)
    assert assistance.drafted == 0 < assistance.passes


@torch.inference_mode()
def test_bfloat16_differs_only_where_two_tokens_tie(real_loop, checkpoint, speech, plainly):
    """Where texts part, the two tokens that they write there are as likely as bfloat16 can tell."""
    assistant = DecoderAssistant(some_layers(checkpoint, [0, 5]), checkpoint, choose_compute("cpu", "bfloat16"))
    loop = real_loop("bfloat16", assistant)
    drafted = run(loop, speech, GREEDY)
    same = 0
    for waveform, one, other in zip(speech, drafted, plainly["bfloat16"], strict=True):
        ends = [[*each.tokens, loop.vocabulary.end] for each in (one, other)]
        part = next((i for i, (a, b) in enumerate(zip(*ends, strict=False)) if a != b), None)
        if part is None:
            same += 1
        else:
            assert (
                margin(loop, waveform, one.tokens[:part], [each[part] for each in ends]) <= 0.5
            )  # four steps of a logit above 16
    assert same >= len(speech) // 2
