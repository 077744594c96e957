import dataclasses
import difflib
import sys

import numpy as np
import pytest
import torch
from whisper_oracle import oracle_model, oracle_tokens

from diarist.asr.beam import beam_search
from diarist.asr.decoding import Decoded, DecodingLoop, Job, SpokenLanguage, compression_ratio
from diarist.asr.features import WINDOW_SAMPLES
from diarist.asr.network import DecoderCache
from diarist.asr.options import DecodingOptions
from diarist.compute import choose
from diarist.engine.memory import resident_bytes
from diarist.errors import OptionError

ENGLISH = DecodingOptions("en", temperatures=(0.0,))


def decode(loop: DecodingLoop, waveforms, options: DecodingOptions = ENGLISH) -> list[Decoded]:
    results: dict[int, Decoded] = {}
    for index, waveform in enumerate(waveforms):
        spoken = SpokenLanguage(options.language or "")
        loop.submit(Job(torch.from_numpy(waveform), options, spoken, lambda d, i=index: results.setdefault(i, d)))
    while loop.pending:
        loop.step()
    return [results[index] for index in range(len(waveforms))]


@pytest.fixture(scope="module")
def oracle(checkpoint):
    return oracle_model(checkpoint)


@pytest.mark.parametrize("timestamps", [True, False])
def test_greedy_tokens_equal_transformers(exact_loop, oracle, checkpoint, utterances, timestamps):
    """Windows that wait for rows, start late and end early write what each writes alone."""
    waveforms = [waveform for waveform, _ in utterances.values()]
    assert len(waveforms) >= 20
    options = dataclasses.replace(ENGLISH, timestamps=timestamps, word_timestamps=False)
    for waveform, decoded in zip(waveforms, decode(exact_loop, waveforms, options), strict=True):
        assert list(decoded.tokens) == oracle_tokens(oracle, checkpoint, waveform, timestamps=timestamps)
        assert decoded.complete


def test_greedy_tokens_equal_transformers_on_the_sample(exact_loop, oracle, checkpoint, sample_waveform):
    (decoded,) = decode(exact_loop, [sample_waveform])
    assert list(decoded.tokens) == oracle_tokens(oracle, checkpoint, sample_waveform, timestamps=True)
    assert len(decoded.tokens) > 60


def test_a_window_is_decoded_alike_in_any_company(exact_loop, sample_waveform, random):
    noise = random.normal(0, 0.05, 200_000).astype(np.float32)
    parts = [sample_waveform[:160_000], noise, sample_waveform[160_000:400_000], sample_waveform[:440_000]]
    alone = [decode(exact_loop, [part])[0] for part in parts]
    together = decode(exact_loop, parts * 2 + parts[:1])
    assert [decoded.tokens for decoded in together] == [decoded.tokens for decoded in [*alone, *alone, alone[0]]]
    for one, other in zip(together, [*alone, *alone, alone[0]], strict=True):
        assert one.starts == pytest.approx(other.starts, abs=0.041)
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)


def test_token_times_never_go_back_and_stay_inside(loop, sample_waveform):
    (decoded,) = decode(loop, [sample_waveform])
    assert len(decoded.starts) == len(decoded.tokens) + 1
    assert list(decoded.starts) == sorted(decoded.starts)
    assert decoded.starts[0] >= 0
    assert decoded.starts[-1] <= 30


def test_a_doubtful_text_is_decoded_again_with_temperature(loop, sample_waveform):
    strict = DecodingOptions("en", temperatures=(0.0, 0.5, 0.9), logprob_threshold=0.0, no_speech_threshold=1.0)
    (decoded,) = decode(loop, [sample_waveform], strict)
    assert decoded.temperature == 0.9
    assert decoded.tokens


def test_text_that_repeats_itself_is_doubtful():
    assert compression_ratio("no " * 100) > 2.4 > compression_ratio("the quick brown fox jumps over the lazy dog")
    assert compression_ratio("") == 0


def test_noise_is_silence(loop, random):
    options = DecodingOptions("en", no_speech_threshold=0.0, logprob_threshold=0.0)
    (decoded,) = decode(loop, [random.normal(0, 1e-4, 80_000).astype(np.float32)], options)
    assert decoded.tokens == ()


def test_the_language_is_found_once_per_recording(loop, sample_waveform):
    options = DecodingOptions(temperatures=(0.0,))
    spoken = SpokenLanguage()
    results = []
    for start in (0, 160_000, 320_000):
        part = torch.from_numpy(sample_waveform[start : start + 160_000])
        loop.submit(Job(part, options, spoken, results.append))
    while loop.pending:
        loop.step()
    assert spoken.code == "en"
    assert 0.5 < spoken.probability <= 1
    assert len(results) == 3


def test_cancelled_jobs_deliver_nothing_and_free_their_rows(loop, sample_waveform):
    results: list[Decoded] = []
    jobs = [
        Job(torch.from_numpy(sample_waveform), ENGLISH, SpokenLanguage("en"), results.append)
        for _ in range(loop.rows + 3)
    ]
    for job in jobs:
        loop.submit(job)
    loop.step()
    for job in jobs[1:]:
        job.cancelled = True
    while loop.pending:
        loop.step()
    assert len(results) == 1
    assert results[0].tokens
    assert not loop.pending


def test_prompts_are_read_and_cut_to_what_fits(loop, sample_waveform):
    (plain,) = decode(loop, [sample_waveform])
    prompted = dataclasses.replace(ENGLISH, initial_prompt="Diane, a writer in New Jersey.", hotwords="Sheila")
    job = Job(torch.from_numpy(sample_waveform), prompted, SpokenLanguage("en"), lambda _: None)
    previous = loop.vocabulary.encode(" Sheila Diane, a writer in New Jersey.")
    assert loop._prompt(job) == [loop.vocabulary.previous, *previous, 50258, 50259, 50359]
    (informed,) = decode(loop, [sample_waveform], prompted)
    assert informed.avg_logprob != pytest.approx(plain.avg_logprob, abs=1e-3)
    long = dataclasses.replace(ENGLISH, hotwords="wonderful " * 500)  # longer than the decoder: cut, not refused
    assert decode(loop, [sample_waveform], long)[0].tokens


def test_a_beam_of_one_is_greedy(exact_loop, sample_waveform):
    (greedy,) = decode(exact_loop, [sample_waveform])
    job = Job(torch.from_numpy(sample_waveform), ENGLISH, SpokenLanguage("en"), lambda _: None)
    with torch.inference_mode():
        cache = DecoderCache(exact_loop.dims, 1, len(exact_loop._decoder.alignment_heads), exact_loop.compute)
        exact_loop._encode([job], cache, 0)
        best = beam_search(
            exact_loop._decoder, exact_loop._logits, exact_loop.vocabulary, cache, job.prompt, exact_loop._rule_state([job]),
            beam_size=1, max_tokens=224, blank=exact_loop._blank,
        )  # fmt: skip
    assert best.tokens == (*greedy.tokens, exact_loop.vocabulary.end)


def test_wider_beams_end(exact_loop, sample_waveform):  # in others Whisper may repeat itself for ever
    wide = decode(exact_loop, [sample_waveform, sample_waveform[:200_000]], dataclasses.replace(ENGLISH, beam_size=3))
    for decoded in wide:
        assert decoded.complete
        assert len(decoded.starts) == len(decoded.tokens) + 1
        assert list(decoded.starts) == sorted(decoded.starts)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_less_precision_says_the_same(checkpoint, exact_loop, utterances, dtype):
    waveforms = [waveform for waveform, _ in utterances.values()][::3]
    loop = DecodingLoop(checkpoint, choose("cpu", dtype), rows=2)
    end = loop.vocabulary.end
    texts = [
        [t for decoded in decode(each, waveforms) for t in decoded.tokens if t < end] for each in (loop, exact_loop)
    ]
    assert difflib.SequenceMatcher(None, *texts, autojunk=False).ratio() >= 0.9


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"language": "klingon"}, "language"),
        ({"task": "sing"}, "task"),
        ({"beam_size": 0}, "beam_size"),
        ({"temperatures": ()}, "temperature"),
        ({"temperatures": (3.0,)}, "temperature"),
    ],
)
def test_options_out_of_bounds_are_named(options, param):
    with pytest.raises(OptionError) as error:
        DecodingOptions(**options)
    assert error.value.param == param


def test_what_is_doubtful_in_a_short_window_is_heard_in_a_full_one(exact_loop, sample_waveform, monkeypatch):
    part = sample_waveform[160_000:240_000]
    lengths = []
    monkeypatch.setattr(DecodingLoop, "_encode", _noting(DecodingLoop._encode, lengths))
    strict = dataclasses.replace(ENGLISH, logprob_threshold=0.0)  # no text passes
    (doubtful,) = decode(exact_loop, [part], strict)
    assert lengths == [8 * 16_000, WINDOW_SAMPLES]
    lengths.clear()
    (trusted,) = decode(exact_loop, [part])
    assert lengths == [8 * 16_000]
    assert trusted.temperature == 0
    monkeypatch.setattr(DecodingLoop, "_length", lambda *_: WINDOW_SAMPLES)
    (whole,) = decode(exact_loop, [part], strict)
    assert doubtful.tokens == whole.tokens


def _noting(encode, lengths):
    def noted(self, jobs, cache, first):
        lengths.extend(self._length(job) for job in jobs)
        return encode(self, jobs, cache, first)

    return noted


def test_siblings_share_weights_and_nothing_else(exact_loop, sample_waveform):
    (alone,) = decode(exact_loop, [sample_waveform])
    sibling = exact_loop.sibling(2, 1)
    assert sibling._encoder is exact_loop._encoder
    results: list[tuple[str, Decoded]] = []
    for name, loop in (("first", exact_loop), ("second", sibling)):
        job = Job(
            torch.from_numpy(sample_waveform), ENGLISH, SpokenLanguage("en"), lambda d, n=name: results.append((n, d))
        )
        loop.submit(job)
    while exact_loop.pending or sibling.pending:
        exact_loop.step()
        sibling.step()
    assert [(name, result.tokens) for name, result in results] == [("first", alone.tokens), ("second", alone.tokens)]


@pytest.mark.skipif(sys.platform != "linux", reason="pages are handed back on Linux")
def test_at_rest_what_was_heard_takes_no_memory(loop, sample_waveform):
    sibling = loop.sibling(4, 1)
    windows = [sample_waveform[:WINDOW_SAMPLES]] * 4
    before = decode(sibling, windows)
    full = resident_bytes()
    sibling.rest()
    heard = 4 * DecoderCache.row_bytes(dataclasses.replace(loop.dims, n_text_ctx=0), loop.compute)
    assert resident_bytes() < full - 0.8 * heard
    assert decode(sibling, windows) == before


def test_a_loop_that_works_does_not_rest(loop, sample_waveform):
    sibling = loop.sibling(1, 1)
    (alone,) = decode(sibling, [sample_waveform])
    found: list[Decoded] = []
    sibling.submit(Job(torch.from_numpy(sample_waveform), ENGLISH, SpokenLanguage("en"), found.append))
    while sibling.pending:
        sibling.step()
        sibling.rest()
    assert [each.tokens for each in found] == [alone.tokens]


def test_a_loop_goes_on_after_a_step_that_raised(exact_loop, sample_waveform, monkeypatch):
    parts = [sample_waveform[start : start + 80_000] for start in (0, 80_000, 160_000)]
    options = DecodingOptions("en", temperatures=(0.0,))
    expected = [decode(exact_loop, [part], options)[0].tokens for part in parts]
    loop = exact_loop.sibling(3, 3)
    results: dict[int, tuple[int, ...]] = {}
    failed: list[Exception] = []
    for index, part in enumerate(parts):
        deliver = lambda decoded, i=index: results.setdefault(i, decoded.tokens)  # noqa: E731
        loop.submit(Job(torch.from_numpy(part), options, SpokenLanguage("en"), deliver, failed.append))
    for _ in range(5):
        loop.step()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_write_tokens", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.step()
    loop.restart(1)
    assert (loop.active, loop.pending, loop.limit) == (0, 3, 1)
    loop.give_up(MemoryError())
    assert [type(error) for error in failed] == [MemoryError]
    while loop.pending:
        loop.step()
        assert loop.active <= 1
    assert results == {1: expected[1], 2: expected[2]}
    loop.relax()
    loop.relax()
    assert loop.limit == 3
