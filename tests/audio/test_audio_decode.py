"""Every container and codec against the sound that was put in; every way to hand a recording over; every error's words."""

import gzip
import io
import os
import sys
import threading

import numpy as np
import pytest
from audio_samples import LOSSLESS, LOSSY, encode, sound

from diarist.audio import SAMPLE_RATE, DecodeLimits, decode, open_audio, waveform_stream
from diarist.errors import (
    AudioCorruptError,
    AudioEmptyError,
    AudioError,
    AudioFormatError,
    AudioNotFoundError,
    AudioTooLargeError,
    OptionError,
)


def similarity(waveform: np.ndarray, reference: np.ndarray, reach: int = 1600) -> tuple[float, int]:
    """The best correlation over shifts of up to `reach` samples, and that shift (positive: the waveform is late)."""
    size = 1 << (len(waveform) + len(reference)).bit_length()
    products = np.fft.irfft(np.fft.rfft(waveform, size) * np.conj(np.fft.rfft(reference, size)), size)
    shifts = np.arange(-reach, reach + 1)
    best = int(shifts[np.argmax(products[shifts])])
    return float(products[best] / (np.linalg.norm(waveform) * np.linalg.norm(reference))), best


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Energy in 20 ms frames, about its mean."""
    energy = (waveform[: len(waveform) // 320 * 320].reshape(-1, 320) ** 2).mean(axis=1)
    return energy - energy.mean()


def wav(seconds: float = 1.0, rate: int = SAMPLE_RATE, channels: int = 1) -> bytes:
    return encode(sound(seconds, rate, channels), rate)


# --- containers and codecs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_back_the_samples(kind):
    container, codec = LOSSLESS[kind]
    original = sound(1.3, SAMPLE_RATE)
    waveform, info, warnings = decode(encode(original, SAMPLE_RATE, container, codec))
    assert waveform.dtype == np.float32
    assert waveform.shape == (len(original[0]),)
    np.testing.assert_allclose(waveform, original[0], atol=0.51 / 32768)
    assert (info.sample_rate, info.channels) == (SAMPLE_RATE, 1)
    assert info.duration == pytest.approx(1.3, abs=0.01)
    assert warnings == []


def test_int16_is_scaled_exactly():
    original = sound(0.5, SAMPLE_RATE)
    waveform, _, _ = decode(encode(original, SAMPLE_RATE))
    assert np.array_equal(waveform * 32768, np.round(original[0] * 32768))


def test_unsigned_bytes():
    original = sound(0.5, SAMPLE_RATE)
    waveform, info, _ = decode(encode(original, SAMPLE_RATE, "wav", "pcm_u8"))
    np.testing.assert_allclose(waveform, original[0], atol=0.51 / 128)
    assert info.codec == "pcm_u8"


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_sound_the_same(kind):
    container, codec, rate, channels, options = LOSSY[kind]
    data = encode(sound(2.0, rate, channels), rate, container, codec, options=options)
    waveform, info, warnings = decode(data)
    reference = sound(2.0, SAMPLE_RATE, channels).mean(axis=0)
    correlation, shift = similarity(waveform, reference)
    assert correlation > (0.5 if kind == "amr" else 0.97)  # a speech codec keeps the sound, not the phases
    assert abs(shift) < 0.05 * SAMPLE_RATE
    assert similarity(loudness(waveform), loudness(reference), reach=4)[0] > 0.97
    assert np.std(waveform) * len(waveform) ** 0.5 == pytest.approx(np.std(reference) * len(reference) ** 0.5, rel=0.25)
    assert len(waveform) == pytest.approx(len(reference), abs=0.08 * SAMPLE_RATE)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert warnings == []


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_h27_sample_rates(rate):
    t = np.arange(2 * rate) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)[None]
    waveform, info, _ = decode(encode(tone, rate, "wav", "pcm_f32le"))
    assert info.sample_rate == rate
    assert len(waveform) == pytest.approx(2 * SAMPLE_RATE, abs=20)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(waveform)) / SAMPLE_RATE)
    middle = slice(SAMPLE_RATE // 10, -SAMPLE_RATE // 10)  # a filter's edges ring
    np.testing.assert_allclose(waveform[middle], expected[middle], atol=1e-3)


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_averaged(channels):
    original = sound(0.7, SAMPLE_RATE, channels)
    waveform, info, _ = decode(encode(original, SAMPLE_RATE, "wav", "pcm_f32le"))
    np.testing.assert_allclose(waveform, original.mean(axis=0), atol=1e-6)
    assert info.channels == channels


def test_full_scale_stereo_stays_inside_one():
    loud = np.ones((2, 8_000), np.float32)
    waveform, _, _ = decode(encode(loud, SAMPLE_RATE, "wav", "pcm_f32le"))
    np.testing.assert_allclose(waveform, 1.0, atol=1e-6)


def test_the_index_of_an_mp4_may_stand_anywhere(tmp_path):
    original = sound(2.0, 44_100)
    behind = encode(original, 44_100, "mp4", "aac")
    ahead = encode(original, 44_100, "mp4", "aac", muxer_options={"movflags": "faststart"}, path=tmp_path / "a.mp4")
    pieces = encode(original, 44_100, "mp4", "aac", muxer_options={"movflags": "frag_keyframe+empty_moov"})
    assert behind.index(b"mdat") < behind.index(b"moov")
    assert ahead.index(b"moov") < ahead.index(b"mdat")
    assert b"moof" in pieces
    expected, _, _ = decode(behind)
    assert np.array_equal(decode(ahead)[0], expected)
    assert similarity(decode(pieces)[0], sound(2.0, SAMPLE_RATE)[0])[0] > 0.97


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "aac"), ("mov", "aac"), ("matroska", "libopus"), ("webm", "libopus")]
)
def test_the_sound_of_a_video(container, codec):
    picture = "libvpx" if container == "webm" else "mpeg4"
    data = encode(sound(2.0, 48_000, 2), 48_000, container, codec, video=picture)
    waveform, _, warnings = decode(data)
    assert similarity(waveform, sound(2.0, SAMPLE_RATE, 2).mean(axis=0))[0] > 0.97
    assert warnings == []


def test_of_several_sound_tracks_the_first_is_taken():
    import av

    first, second = sound(1.0, SAMPLE_RATE), np.zeros((1, SAMPLE_RATE), np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        streams = [output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono") for _ in range(2)]
        for stream, samples in zip(streams, (first, second), strict=True):
            frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            output.mux(stream.encode(frame))
    waveform, _, _ = decode(file.getvalue())
    np.testing.assert_allclose(waveform, first[0], atol=1 / 16384)


def test_subtitles_and_attachments_do_not_matter():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        output.add_stream("ass").codec_context.subtitle_header = b"[Script Info]\n"
        output.add_attachment("font.ttf", "font/ttf", b"letters")
        frame = av.AudioFrame.from_ndarray(np.full((1, SAMPLE_RATE), 8192, np.int16), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
    with av.open(io.BytesIO(file.getvalue())) as written:
        assert [stream.type for stream in written.streams] == ["audio", "subtitle", "attachment"]
    assert np.array_equal(decode(file.getvalue())[0], np.full(SAMPLE_RATE, 0.25, np.float32))


def test_cover_pictures_do_not_matter():
    """An ID3 tag with a JPEG in it makes FFmpeg see a video stream beside the sound."""
    mp3 = encode(sound(1.0, 44_100), 44_100, "mp3", "libmp3lame")
    mp3 = mp3[10 + int.from_bytes(mp3[6:10], "big") :] if mp3.startswith(b"ID3") else mp3
    picture = b"\x00image/jpeg\x00\x03\x00" + bytes.fromhex("ffd8ffe000104a46494600010100000100010000") + b"\xff\xd9"
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\x00\x00" + picture
    tagged = b"ID3\x03\x00\x00" + bytes([0, 0, len(frame) >> 7, len(frame) & 127]) + frame + mp3
    waveform, _, _ = decode(tagged)
    assert similarity(waveform, sound(1.0, SAMPLE_RATE)[0])[0] > 0.97


@pytest.mark.parametrize(("container", "codec", "rate"), [("matroska", "libopus", 48_000), ("mp4", "aac", 44_100)])
def test_a_gap_in_the_time_stamps_becomes_silence(container, codec, rate):
    waveform, _, warnings = decode(encode(sound(2.0, rate), rate, container, codec, gap=(1.0, 3.0)))
    assert len(waveform) == pytest.approx(5.0 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert not waveform[round(1.2 * SAMPLE_RATE) : round(3.8 * SAMPLE_RATE)].any()
    reference = sound(2.0, SAMPLE_RATE)[0]
    assert similarity(waveform[4 * SAMPLE_RATE :], reference[SAMPLE_RATE:])[0] > 0.9
    assert warnings == ["3.0 s of silence were put into the input where its time stamps leave gaps"]


def test_sound_that_starts_after_the_picture_keeps_its_time():
    waveform, _, _ = decode(encode(sound(2.0, 48_000), 48_000, "matroska", "libopus", video="mpeg4", offset_s=2.0))
    assert len(waveform) == pytest.approx(4.0 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert not waveform[: round(1.9 * SAMPLE_RATE)].any()


def test_joined_files_are_decoded_to_the_end():
    """Ogg files may simply be written one after another; the clock starts anew in each."""
    one = encode(sound(1.0, 48_000), 48_000, "ogg", "libopus")
    waveform, _, _ = decode(one * 3)
    assert len(waveform) == pytest.approx(3 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


def test_absurd_time_stamps_are_not_followed():
    waveform, _, _ = decode(encode(sound(2.0, 48_000), 48_000, "matroska", "libopus", gap=(1.0, 7200.0)))
    assert len(waveform) == pytest.approx(2.0 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


def test_real_recordings(shared_data):
    clips = shared_data / "clips"
    expected = {
        "jfk.flac": ("flac", 44_100, 2, 11.0),
        "fw_multilingual.mp3": ("mp3", 24_000, 1, 59.9),
        "google_commercial_mono.wav": ("wav", 8_000, 1, 45.3),
        "fw_stereo_diarization.wav": ("wav", 16_000, 2, 5.0),
    }
    for name, (container, rate, channels, seconds) in expected.items():
        waveform, info, warnings = decode(clips / name)
        assert (info.container, info.sample_rate, info.channels) == (container, rate, channels)
        assert info.duration == pytest.approx(seconds, abs=0.01)
        assert len(waveform) / SAMPLE_RATE == pytest.approx(seconds, abs=0.01)
        assert 0.05 < np.abs(waveform).max() <= 1.0
        assert warnings == []


# --- ways to hand a recording over ------------------------------------------------------------------------------------


class Unseekable(io.RawIOBase):
    """Bytes that come once, a few at a time, as from a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._data.readinto(memoryview(buffer)[:1000])


def test_sources_of_every_kind(tmp_path):
    data = wav()
    path = tmp_path / "ünïcode and space.wav"
    path.write_bytes(data)
    expected, _, _ = decode(data)
    assert len(expected) == SAMPLE_RATE
    packed = io.BytesIO(gzip.compress(data))
    with path.open("rb") as buffered, path.open("rb", buffering=0) as unbuffered, gzip.open(packed) as unzipped:
        sources = [
            *(str(path), path, bytearray(data), memoryview(data), io.BytesIO(data)),
            *(buffered, unbuffered, unzipped, Unseekable(data), io.BufferedReader(Unseekable(data))),
        ]
        for source in sources:
            assert np.array_equal(decode(source)[0], expected), source


def test_a_gzipped_file_is_read_through_its_own_read(tmp_path):
    """Its `fileno` is that of the compressed file: handing that over would decode the wrong bytes."""
    path = tmp_path / "a.wav.gz"
    path.write_bytes(gzip.compress(wav()))
    with gzip.open(path) as file:
        assert isinstance(file.fileno(), int)
        assert len(decode(file)[0]) == SAMPLE_RATE


def test_a_file_is_read_from_where_it_stands_and_left_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"other things" + wav() + b"")
    with path.open("rb") as file:
        file.read(12)
        assert len(decode(file)[0]) == SAMPLE_RATE
        assert file.tell() == 12
        assert file.read(4) == b"RIFF"


def test_a_named_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encode(sound(2.0, 44_100), 44_100, "mp4", "aac"),))
    writer.start()
    waveform, _, _ = decode(path)  # its index is at the end: it must have been copied to a file
    writer.join()
    assert len(waveform) == pytest.approx(2 * SAMPLE_RATE, abs=1600)


def test_other_sources_are_refused(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("words")
    with pytest.raises(OptionError, match="float"):
        decode(3.5)
    with text.open() as file, pytest.raises(OptionError, match="str"):
        decode(file)
    with pytest.raises(OptionError, match="block_s"):
        open_audio(wav(), block_s=0)


# --- streaming --------------------------------------------------------------------------------------------------------


def test_blocks_have_the_length_that_was_asked_for():
    original = sound(2.6, SAMPLE_RATE)
    with open_audio(encode(original, SAMPLE_RATE), block_s=0.7) as stream:
        assert stream.info.duration == pytest.approx(2.6)
        blocks = []
        for block in stream:
            blocks.append(block)
            assert stream.seconds_read == pytest.approx(sum(map(len, blocks)) / SAMPLE_RATE)
    assert [len(block) for block in blocks] == [11_200, 11_200, 11_200, 8_000]
    np.testing.assert_allclose(np.concatenate(blocks), original[0], atol=0.51 / 32768)


def test_a_closed_stream_ends():
    with open_audio(encode(sound(5.0, SAMPLE_RATE), SAMPLE_RATE), block_s=1.0) as stream:
        next(stream)
    assert list(stream) == []
    assert stream.seconds_read == 1.0


# --- damage -----------------------------------------------------------------------------------------------------------

CUTTABLE = {
    "wav": ("wav", "pcm_s16le"),
    "w64": ("w64", "pcm_s16le"),
    "aiff": ("aiff", "pcm_s16be"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "mkv": ("matroska", "libopus"),
    "m4a": ("mp4", "aac"),
    "aac": ("adts", "aac"),
}


@pytest.mark.parametrize("kind", CUTTABLE)
def test_a_truncated_file_gives_what_it_has_and_a_warning(kind, tmp_path):
    container, codec = CUTTABLE[kind]
    rate = 48_000
    index_first = {"muxer_options": {"movflags": "faststart"}, "path": tmp_path / "a.mp4"} if kind == "m4a" else {}
    data = encode(sound(6.0, rate), rate, container, codec, **index_first)
    waveform, _, warnings = decode(data[: len(data) // 2], name=f"talk.{kind}")
    assert 2.0 < len(waveform) / SAMPLE_RATE < 4.0
    assert similarity(waveform, sound(6.0, SAMPLE_RATE)[0][: len(waveform)])[0] > 0.9
    assert warnings
    assert all(f"'talk.{kind}'" in warning for warning in warnings)
    assert any(word in warnings[0] for word in ("cut short", "damaged"))


def test_an_m4a_without_its_index_is_damaged():
    data = encode(sound(2.0, 44_100), 44_100, "ipod", "aac")
    with pytest.raises(AudioCorruptError, match=r"'talk\.m4a' is damaged"):
        decode(data[: len(data) * 9 // 10], name="talk.m4a")


def test_damage_in_the_middle_costs_only_the_middle():
    data = bytearray(encode(sound(6.0, 44_100), 44_100, "mp3", "libmp3lame"))
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(range(250)) * 16
    waveform, _, _ = decode(data)
    assert len(waveform) > 4.5 * SAMPLE_RATE


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_recorder_that_did_not_know_the_length(length):
    """What sox, ffmpeg and arecord write to a pipe: it must not be taken for 18 hours, nor for a truncated file."""
    data = wav(2.0)
    at = data.index(b"data")
    forged = (length + 36 & 0xFFFFFFFF).to_bytes(4, "little")
    data = data[:4] + forged + data[8 : at + 4] + length.to_bytes(4, "little") + data[at + 8 :]
    waveform, _, warnings = decode(data)
    assert len(waveform) == 2 * SAMPLE_RATE
    assert warnings == []


# --- errors and their words -------------------------------------------------------------------------------------------


def refused(source, kind: type[AudioError], **options) -> str:
    with pytest.raises(AudioError) as caught:
        decode(source, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def test_paths_that_cannot_be_opened(tmp_path):
    assert refused(tmp_path / "none.wav", AudioNotFoundError) == "'none.wav' does not exist; check the path"
    assert "is a folder" in refused(tmp_path, AudioNotFoundError)
    assert "cannot be opened" in refused("a\0b.wav", AudioNotFoundError)
    assert "cannot be opened" in refused("a" * 5000, AudioNotFoundError)
    assert "cannot be opened" in refused(f"{sys.executable}/a.wav", AudioNotFoundError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_path_without_permission(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav())
    path.chmod(0)
    assert "may not be read" in refused(path, AudioNotFoundError)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"Dear all,\n" * 100,
        b"\x00" * 5000,
        b"%PDF-1.7\n" + b"0" * 2000,
        b"PK\x03\x04" + b"1" * 2000,
        b"\x89PNG\r\n\x1a\n" * 9,
    ],
)
def test_what_is_not_audio(data, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(data)
    message = refused(path, AudioFormatError)
    assert message.startswith("'notes.txt' is not audio that diarist reads")
    assert "give it a wav, flac, mp3" in message
    assert refused(data, AudioFormatError).startswith("the input is not audio")


def test_no_bytes(tmp_path):
    path = tmp_path / "a.wav"
    path.touch()
    assert refused(path, AudioEmptyError).startswith("'a.wav' holds no bytes")
    assert refused(b"", AudioEmptyError).startswith("the input holds no bytes")
    assert refused(io.BytesIO(), AudioEmptyError, name="standard input").startswith("'standard input' holds no bytes")


def test_a_video_without_sound():
    silent = io.BytesIO()
    import av

    with av.open(silent, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        output.mux(stream.encode(None))
    assert refused(silent.getvalue(), AudioFormatError, name="film.mp4").startswith("'film.mp4' has no sound track")


def test_a_codec_that_is_not_on_the_list():
    data = encode(sound(1.0, 48_000, 2), 48_000, "matroska", "wavpack")
    message = refused(data, AudioFormatError, name="a.mka")
    assert message.startswith("the sound of 'a.mka' is coded as wavpack, which diarist does not read")


def test_caps_name_their_limit():
    data = encode(sound(3.0, SAMPLE_RATE), SAMPLE_RATE)
    assert "limit of 2.0 s" in refused(data, AudioTooLargeError, limits=DecodeLimits(max_duration_s=2))
    assert "limit of 10000 bytes" in refused(data, AudioTooLargeError, limits=DecodeLimits(max_native_bytes=10_000))
    assert "limit of 90000 bytes" in refused(data, AudioTooLargeError, limits=DecodeLimits(max_input_bytes=90_000))
    assert "limit of 90000 bytes" in refused(
        Unseekable(data), AudioTooLargeError, limits=DecodeLimits(max_input_bytes=90_000)
    )
    limits = DecodeLimits(max_duration_s=3, max_input_bytes=len(data), max_native_bytes=4 * 48_000)
    assert len(decode(data, limits=limits)[0]) == 48_000


def test_an_endless_stream_is_not_copied_to_the_end():
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def read(self, count: int = -1) -> bytes:
            self.given += count
            return bytes(count)

    endless = Endless()
    refused(endless, AudioTooLargeError, limits=DecodeLimits(max_native_bytes=8 << 20))
    assert endless.given <= 10 << 20


# --- degenerate sound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 159, 15_999])
def test_h27_short_recordings(samples):
    waveform, _, warnings = decode(encode(np.full((1, samples), 0.25, np.float32), SAMPLE_RATE))
    assert np.array_equal(waveform, np.full(samples, 0.25, np.float32))
    assert warnings == []


def test_h27_a_header_without_samples():
    data = wav()
    empty = data[: data.index(b"data")] + b"data\x00\x00\x00\x00"
    empty = empty[:4] + (len(empty) - 8).to_bytes(4, "little") + empty[8:]
    waveform, _, warnings = decode(empty)
    assert waveform.shape == (0,)
    assert waveform.dtype == np.float32
    assert warnings == ["the input holds no sound"]


@pytest.mark.parametrize("level", [0.0, 1.0, -0.3])
def test_h27_silence_and_direct_current(level):
    waveform, _, _ = decode(encode(np.full((2, 44_100), level, np.float32), 44_100, "wav", "pcm_f32le"))
    np.testing.assert_allclose(waveform[200:-200], level, atol=1e-3)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 48_000])
def test_h27_samples_that_are_not_numbers(rate):
    original = sound(1.0, rate)
    original[0, 5000:5010] = [np.nan, np.inf, -np.inf, 1e30, -1e38, *[np.nan] * 5]
    waveform, _, warnings = decode(encode(original, rate, "wav", "pcm_f32le"))
    assert np.isfinite(waveform).all()
    assert np.abs(waveform).max() < 2.0
    assert not waveform[round(5003 * SAMPLE_RATE / rate)]
    assert len(warnings) == 1
    assert "without a finite value became silence" in warnings[0]
    far = slice(0, round(4900 * SAMPLE_RATE / rate))  # the damage does not spread
    np.testing.assert_allclose(waveform[far], sound(1.0, SAMPLE_RATE)[0][far], atol=2e-2)


def test_h27_noise_at_192_khz_in_8_channels():
    noise = np.random.default_rng(3).uniform(-1, 1, (8, 192_000)).astype(np.float32)
    waveform, _, _ = decode(encode(noise, 192_000, "wav", "pcm_s32le"))
    assert len(waveform) == pytest.approx(SAMPLE_RATE, abs=20)
    assert np.isfinite(waveform).all()


# --- samples that are in memory already -------------------------------------------------------------------------------


def collect(stream) -> np.ndarray:
    blocks = list(stream)
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        ("int8", 128, 0),
        ("uint8", 128, 128),
        ("int16", 32768, 0),
        ("int32", 2**31, 0),
        ("float64", 1, 0),
        ("float16", 1, 0),
    ],
)
def test_waveforms_of_any_type(dtype, scale, offset):
    original = sound(0.5, SAMPLE_RATE)[0].astype(np.float64)
    stream = waveform_stream((original * scale + offset).astype(dtype), SAMPLE_RATE)
    waveform = collect(stream)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, original, atol=max(1.1 / scale if scale > 1 else 0, 1e-3))
    assert stream.seconds_read == 0.5
    assert stream.info.duration == 0.5


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_waveforms_are_resampled_without_seams(rate):
    original = sound(25.0, rate, 2)
    blocks = list(waveform_stream(original, rate, block_s=7.0))
    assert [len(block) for block in blocks[:-1]] == [7 * SAMPLE_RATE] * 3
    waveform, reference = np.concatenate(blocks), sound(25.0, SAMPLE_RATE, 2).mean(axis=0)
    assert len(waveform) == pytest.approx(len(reference), abs=2)
    count = min(len(waveform), len(reference)) - 1600
    np.testing.assert_allclose(waveform[1600:count], reference[1600:count], atol=1e-2)


def test_a_waveform_decodes_like_its_file():
    original = sound(2.0, 44_100, 2)
    decoded, _, _ = decode(encode(original, 44_100, "wav", "pcm_f32le"))
    direct = collect(waveform_stream(original, 44_100))
    np.testing.assert_allclose(decoded[500:31_500], direct[500:31_500], atol=5e-3)


def test_h27_waveforms_that_are_not_numbers():
    original = sound(1.0, 48_000)[0]
    original[[3, 500]] = np.nan, np.inf
    stream = waveform_stream(original, 48_000)
    assert np.isfinite(collect(stream)).all()
    assert stream.warnings == ["2 samples without a finite value became silence"]
    assert np.isnan(original[3])  # the caller's array is the caller's
    assert collect(waveform_stream(np.empty(0, np.float32), SAMPLE_RATE)).shape == (0,)


@pytest.mark.parametrize(
    ("waveform", "rate", "words"),
    [
        (np.zeros((1000, 2)), 16_000, "transpose"),
        (np.zeros((1, 1, 5)), 16_000, "shape"),
        (np.zeros(5, complex), 16_000, "floats"),
        (np.zeros(5, bool), 16_000, "floats"),
        (np.zeros(5), 10, "sample_rate"),
        (np.zeros(5), 10**7, "sample_rate"),
        (np.zeros((0, 5)), 16_000, "channels"),
    ],
)
def test_waveforms_that_are_refused(waveform, rate, words):
    with pytest.raises(OptionError, match=words):
        waveform_stream(waveform, rate)
