import numpy as np
import pytest

from diarist.asr.decoding import Decoded
from diarist.asr.options import DecodingOptions
from diarist.asr.recognizer import RecognitionStream, Recognizer
from diarist.asr.results import Passage, passages, without_pauses
from diarist.asr.windows import WindowOptions
from diarist.compute import choose
from diarist.errors import OptionError
from diarist.models import load_whisper
from diarist.timeline import Segment

BEGIN = 100


def decoded(*tokens: int) -> Decoded:
    return Decoded(tokens, (0.0,) * len(tokens), (), 0.0, 0.0, 1.0, 0.0, complete=True)


def stamp(seconds: float) -> int:
    return BEGIN + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((stamp(0), 1, 2, stamp(2), stamp(2), 3, stamp(4)), [Passage(0, 2, 1, 3), Passage(2, 4, 5, 6)]),
        ((stamp(0), 1, 2, stamp(2), stamp(3), 3), [Passage(0, 2, 1, 3), Passage(3, 9, 5, 6)]),  # cut off
        ((1, 2), [Passage(0, 9, 0, 2)]),  # without timestamps
        ((stamp(0), stamp(5)), []),
        ((stamp(0), 1, stamp(20)), [Passage(0, 9, 1, 2)]),  # past the window's end
        ((), []),
    ],
)
def test_passages_lie_between_timestamps(tokens, expected):
    assert passages(decoded(*tokens), BEGIN, 9.0) == expected


def test_a_word_does_not_last_into_a_pause():
    speech = [Segment(0, 2), Segment(5, 9)]
    assert without_pauses(Segment(1.5, 4.9), speech) == Segment(1.5, 2)
    assert without_pauses(Segment(1.9, 5.5), speech) == Segment(5, 5.5)
    assert without_pauses(Segment(3, 4), speech) == Segment(3, 4)


class SkippingLoop:
    """Plays the decode loop: writes nothing for the stretch that it is told to skip, at first."""

    def __init__(self, vocabulary, skipped: Segment, *, always: bool = False) -> None:
        self.vocabulary, self.skipped, self.always = vocabulary, skipped, always
        self.jobs: list[tuple[float, object]] = []

    def submit(self, job) -> None:
        seconds = len(job.waveform) / 16_000
        self.jobs.append(seconds)
        word = self.vocabulary.encode(" word")
        at = lambda t: self.vocabulary.timestamp_begin + round(t / 0.02)  # noqa: E731
        if len(self.jobs) == 1:
            s = self.skipped
            tokens = (at(0), *word, at(s.start), at(s.end), *word, at(seconds))
        else:
            tokens = () if self.always else (at(0), *word, at(seconds))
        job.deliver(Decoded(tokens, (0.0,) * len(tokens), (), 0.0, 0.0, 1.0, 0.0, complete=True))


@pytest.fixture
def vocabulary(exact_loop):
    return exact_loop.vocabulary


@pytest.mark.parametrize("always", [False, True])
def test_speech_that_got_no_text_is_decoded_again_or_reported(vocabulary, always):
    loop = SkippingLoop(vocabulary, Segment(5, 12), always=always)
    stream = RecognitionStream(loop, DecodingOptions("en"), WindowOptions())
    stream.push([Segment(100, 120)], np.zeros(20 * 16_000, np.float32), 100.0, final=True)
    result = stream.result()
    assert loop.jobs[0] == pytest.approx(20, abs=0.01)
    assert loop.jobs[1] == pytest.approx(7, abs=0.01)
    assert [word.text for word in result.words] == ["word"] * (2 if always else 3)
    assert [word.start for word in result.words] == sorted(word.start for word in result.words)
    if always:
        assert [(part.start, part.end) for part in result.unheard] == [pytest.approx((105, 112), abs=0.05)]
    else:
        assert result.unheard == ()


@pytest.mark.parametrize("block_s", [7.0, 30.0])
def test_windows_do_not_depend_on_how_the_recording_comes(vocabulary, block_s):
    track = [Segment(3.0 * n, 3.0 * n + 2.5) for n in range(50)]
    waveform = np.arange(150 * 16_000, dtype=np.float32)

    class Collecting:
        def __init__(self) -> None:
            self.vocabulary, self.windows = vocabulary, []

        def submit(self, job) -> None:
            self.windows.append((float(job.waveform[0]), len(job.waveform)))

    whole = Collecting()
    RecognitionStream(whole, DecodingOptions("en")).push(track, waveform, 0.0, final=True)
    pieces = Collecting()
    stream = RecognitionStream(pieces, DecodingOptions("en"))
    offset = 0.0
    for settled in [*np.arange(block_s, 150, block_s), 150.0]:
        speech = [part for s in track if (part := s & Segment(offset, float(settled)))]
        kept = waveform[round(offset * 16_000) : round(settled * 16_000)]
        offset = stream.push(speech, kept, offset, final=settled == 150)
    assert pieces.windows == whole.windows


def test_an_english_only_model_says_what_it_cannot_do(tiny_en_model):
    recognizer = Recognizer(load_whisper(tiny_en_model), choose("cpu", "float32"), rows=1)
    with pytest.raises(OptionError, match="English only"):
        recognizer.stream(DecodingOptions("de"))
    with pytest.raises(OptionError, match="cannot translate"):
        recognizer.stream(DecodingOptions(task="translate"))


def test_an_english_only_model_transcribes(tiny_en_model, sample_waveform):
    recognizer = Recognizer(load_whisper(tiny_en_model), choose("cpu", "float32"), rows=1)
    stream = recognizer.stream(DecodingOptions())
    stream.push([Segment(0, 30)], sample_waveform, 0.0, final=True)
    while stream.waiting:
        recognizer.loop.step()
    result = stream.result()
    assert result.language == "en"
    assert {"hello", "there"} <= {word.text.strip(".,?!").lower() for word in result.words}


def test_translation_gives_english(exact_loop, shared_data):
    import av

    with av.open(str(shared_data / "clips" / "fw_multilingual.mp3")) as container:
        resampler = av.AudioResampler("flt", "mono", 16_000)
        frames = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    waveform = np.concatenate(frames)[: 30 * 16_000]
    stream = RecognitionStream(exact_loop, DecodingOptions(task="translate", temperatures=(0.0,)))
    stream.push([Segment(0, len(waveform) / 16_000)], waveform, 0.0, final=True)
    while stream.waiting:
        exact_loop.step()
    assert stream.result().words


class LateLoop:
    """Plays the decode loop: keeps the jobs, to be delivered in any order."""

    def __init__(self, vocabulary) -> None:
        self.vocabulary = vocabulary
        self.jobs: list = []

    def submit(self, job) -> None:
        self.jobs.append(job)

    def deliver(self, number: int, text: str) -> None:
        job = self.jobs[number]
        end = len(job.waveform) / 16_000
        at = lambda t: self.vocabulary.timestamp_begin + round(t / 0.02)  # noqa: E731
        tokens = (at(0), *self.vocabulary.encode(text), at(end))
        job.deliver(Decoded(tokens, (0.0,) * len(tokens), (), 0.0, 0.0, 1.0, 0.0, complete=True))


def texts(stream: RecognitionStream) -> list[str]:
    return [word.text for word in stream.settled()]


def test_words_are_settled_in_order_of_time_whatever_comes_back_first(vocabulary):
    loop = LateLoop(vocabulary)
    stream = RecognitionStream(loop, DecodingOptions("en"), WindowOptions())
    speech = [Segment(start, start + 24) for start in (1.0, 28.0, 55.0)]
    stream.push(speech, np.zeros(80 * 16_000, np.float32), 0.0, final=True)
    assert len(loop.jobs) == 3
    loop.deliver(1, " second")
    assert texts(stream) == []
    loop.deliver(0, " first")
    assert texts(stream) == ["first", "second"]
    loop.deliver(2, " third")
    assert [word.text for word in stream.result().words] == texts(stream) == ["first", "second", "third"]


def test_a_window_that_fails_fails_its_recording(vocabulary):
    loop = LateLoop(vocabulary)
    stream = RecognitionStream(loop, DecodingOptions("en"), WindowOptions())
    stream.push([Segment(1, 20)], np.zeros(30 * 16_000, np.float32), 0.0, final=True)
    loop.jobs[0].fail(MemoryError())
    assert not stream.waiting
    with pytest.raises(MemoryError):
        stream.result()
