"""The rows of the table of hazards that end at the decoder: bombs, forgeries, mutations, playlists, names."""

import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from audio_samples import encode, repeated, sound

from diarist.audio import SAMPLE_RATE, DecodeLimits, decode, open_audio
from diarist.errors import AudioCorruptError, AudioError, AudioFormatError, AudioTooLargeError

TEN_HOURS = 36_000.0
PROMPT_S = 5.0  # the aim is 2 s; a loaded machine gets some more


# --- 5: bombs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "codec", "rate"), [("ipod", "aac", 16_000), ("ogg", "libopus", 48_000), ("matroska", "flac", 16_000)]
)
def test_h05_a_header_that_admits_ten_hours_is_refused_at_once(container, codec, rate):
    bomb = repeated(TEN_HOURS, rate, container, codec)
    assert len(bomb) < 12 << 20
    started = time.monotonic()
    with pytest.raises(AudioTooLargeError, match=r"'bomb' is longer than the limit of 4:00:00"):
        open_audio(bomb, name="bomb")
    assert time.monotonic() - started < PROMPT_S


def without_duration(bomb: bytes) -> bytes:
    """The same Matroska file, claiming to last 10 s."""
    at = bomb.index(b"\x44\x89\x88")  # the element Duration, 8 bytes of float
    return bomb[: at + 3] + struct.pack(">d", 10_000.0) + bomb[at + 11 :]


def unclaimed_flac(seconds: float) -> bytes:
    """Silence in FLAC whose header leaves the number of samples open."""
    data = bytearray(encode(np.zeros((1, round(8_000 * seconds)), np.float32), 8_000, "flac", "flac"))
    data[21] &= 0xF0  # STREAMINFO: the lowest 36 of the 64 bits from byte 18 on
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(lambda: repeated(TEN_HOURS, 16_000, "adts", "aac"), id="aac"),
        pytest.param(lambda: without_duration(repeated(TEN_HOURS, 16_000, "matroska", "flac")), id="flac in matroska"),
        pytest.param(
            lambda: without_duration(repeated(TEN_HOURS, 48_000, "matroska", "libopus")), id="opus in matroska"
        ),
        pytest.param(lambda: unclaimed_flac(3_600), id="flac"),
    ],
)
def test_h05_a_header_that_lies_is_stopped_at_the_cap(bomb):
    data = io.BytesIO(bomb())
    limits = DecodeLimits(max_duration_s=900)
    tracemalloc.start()
    try:
        stream = open_audio(data, limits=limits)
        with pytest.raises(AudioTooLargeError, match="longer than the limit of 0:15:00"):
            deque(stream, maxlen=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 800 < stream.seconds_read <= 900
    assert peak < 64 << 20  # one minute of blocks is 3.7 MiB


def test_h05_native_bytes_have_a_cap_of_their_own():
    """12 s of silence in 8 channels at 192 kHz: nothing in FLAC, 74 MB decoded, 0.8 MB kept."""
    data = encode(np.zeros((8, 12 * 192_000), np.float32), 192_000, "flac", "flac")
    assert len(data) < 100_000
    assert len(decode(data)[0]) == 12 * SAMPLE_RATE
    with pytest.raises(AudioTooLargeError, match="decodes to more than the limit of 64 MiB"):
        decode(data, limits=DecodeLimits(max_native_bytes=64 << 20))


MEASURE = """
import json, resource, sys
from diarist.audio import DecodeLimits, open_audio
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with open_audio(sys.argv[1], limits=DecodeLimits(max_duration_s=1800)) as stream:
        for block in stream:
            pass
    outcome = "decoded"
except Exception as error:
    outcome = type(error).__name__
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([outcome, (after - before) / 1024, child / 1024]))
"""


def measured(path: Path) -> tuple[str, float, float]:
    """What became of it, and the growth of the parent and the size of the child at their largest, in MiB resident."""
    source = str(Path(sys.modules["diarist"].__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    answer = subprocess.run([sys.executable, "-c", MEASURE, path], env=environment, capture_output=True, check=True)
    outcome, parent, child = json.loads(answer.stdout)
    return outcome, parent, child


def test_h05_h06_resident_memory_stays_small(tmp_path):
    aac, flac = tmp_path / "bomb.aac", tmp_path / "wide.flac"
    aac.write_bytes(repeated(TEN_HOURS, 16_000, "adts", "aac"))
    flac.write_bytes(encode(np.zeros((8, 6 * 192_000), np.float32), 192_000, "flac", "flac"))
    outcome, parent, child = measured(aac)
    assert outcome == "AudioTooLargeError"
    assert parent < 64
    assert child < 256
    outcome, parent, child = measured(flac)
    assert outcome == "decoded"
    assert parent < 64
    assert child < 256


# --- 6: forged rates, channels, sizes ---------------------------------------------------------------------------------


def riff(rate=16_000, channels=1, bits=16, tag=1, align=None, data_bytes=None, samples=16_000) -> bytes:
    """A WAV file whose header says what it is told to; the sound is a ramp."""
    sound_bytes = (np.arange(samples) % 200).astype("<i2").tobytes()
    align = channels * bits // 8 if align is None else align
    header = struct.pack("<HHIIHH", tag, channels & 0xFFFF, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    length = len(sound_bytes) if data_bytes is None else data_bytes
    body = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", length) + sound_bytes
    return b"RIFF" + struct.pack("<I", len(body)) + body


FORGED = {
    "rate 0": riff(rate=0),
    "rate 1": riff(rate=1),
    "rate 3": riff(rate=3),
    "rate 999": riff(rate=999),
    "rate 1 MHz": riff(rate=1_000_000),
    "rate 2^31-1": riff(rate=2**31 - 1),
    "rate 2^32-1": riff(rate=2**32 - 1),
    "channels 0": riff(channels=0),
    "channels 65": riff(channels=65),
    "channels 255": riff(channels=255),
    "channels 65535": riff(channels=65_535),
    "65535 channels at 2^31": riff(rate=2**31, channels=65_535),
    "bits 0": riff(bits=0),
    "bits 1": riff(bits=1),
    "bits 7": riff(bits=7),
    "bits 65535": riff(bits=65_535),
    "align 0": riff(align=0),
    "align 65535": riff(align=65_535),
    "data 4 GiB": riff(data_bytes=2**32 - 1),
    "data 1 GiB": riff(data_bytes=2**30),
    "unknown tag": riff(tag=0x7777),
    "8 bytes of data": riff(samples=4),
    "8 channels at 768 kHz": riff(rate=768_000, channels=8),
    "low rate, much sound": riff(rate=1_000, samples=200_000),
}


@pytest.mark.parametrize("kind", FORGED)
def test_h06_forged_headers(kind):
    started = time.monotonic()
    try:
        waveform, info, _ = decode(FORGED[kind], name="forged.wav")
    except (AudioCorruptError, AudioFormatError, AudioTooLargeError) as error:
        message = str(error)
        assert "forged.wav" in message
    else:
        assert 1_000 <= info.sample_rate <= 768_000
        assert 1 <= info.channels <= 64
        assert len(waveform) <= 200 * SAMPLE_RATE
        assert np.isfinite(waveform).all()
    assert time.monotonic() - started < PROMPT_S


def test_h06_forged_rates_name_the_rate():
    with pytest.raises(AudioCorruptError, match=r"'a\.wav' claims a sample rate of 3 Hz"):
        decode(riff(rate=3), name="a.wav")
    with pytest.raises(AudioFormatError, match=r"'a\.wav' claims 65 channels"):
        decode(riff(channels=65), name="a.wav")


def test_h06_a_size_that_is_not_there_is_not_allocated():
    tracemalloc.start()
    try:
        decode(riff(data_bytes=2**30))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


# --- 8: malformed media -----------------------------------------------------------------------------------------------


def mutations() -> list[tuple[str, bytes]]:
    """25 of each of 8 containers: flipped bits, overwritten, moved, repeated and missing parts, mostly near the front."""
    originals = {
        "wav": encode(sound(0.4, 16_000), 16_000),
        "flac": encode(sound(0.4, 16_000), 16_000, "flac", "flac"),
        "mp3": encode(sound(0.4, 44_100), 44_100, "mp3", "libmp3lame"),
        "m4a": encode(sound(0.4, 44_100), 44_100, "ipod", "aac"),
        "ogg": encode(sound(0.4, 48_000), 48_000, "ogg", "libopus"),
        "webm": encode(sound(0.4, 48_000), 48_000, "webm", "libopus", video="libvpx"),
        "wma": encode(sound(0.4, 44_100), 44_100, "asf", "wmav2", options={"b": "64k"}),
        "aiff": encode(sound(0.4, 16_000), 16_000, "aiff", "pcm_s16be"),
    }
    chance = random.Random(8)
    mutated = []
    for kind, original in originals.items():
        for _ in range(25):
            data = bytearray(original)
            for _ in range(chance.choice((1, 3, 20, 200))):
                at = (
                    min(int(chance.expovariate(1 / 400)), len(data) - 1)
                    if chance.random() < 0.7
                    else chance.randrange(len(data))
                )
                match chance.randrange(5):
                    case 0:
                        data[at] ^= 1 << chance.randrange(8)
                    case 1:
                        data[at : at + 4] = chance.choice(
                            (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0")
                        )
                    case 2:
                        data[at : at + 8] = chance.randbytes(8)
                    case 3:
                        data[at:at] = data[at : at + chance.randrange(1, 64)]
                    case _:
                        del data[at : at + chance.randrange(1, 16)]
            mutated.append((kind, bytes(data)))
    return mutated


def test_h08_mutations_neither_crash_nor_hang():
    """A child that crashed or was stopped would show as the reason that no other way leads to."""

    def outcome(case: tuple[str, bytes]) -> tuple[str, str, float]:
        kind, data = case
        started = time.monotonic()
        try:
            waveform, _, _ = decode(data)
        except AudioError as error:
            return kind, f"{type(error).__name__}: {error}", time.monotonic() - started
        assert np.isfinite(waveform).all()
        return kind, "decoded", time.monotonic() - started

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, mutations()))
    assert len(outcomes) == 200
    said = [text for _, text, _ in outcomes]
    assert not [text for text in said if any(word in text for word in ("Timeout", "failed", "crashed", "memory"))]
    assert {text.split(":")[0] for text in said} <= {
        "decoded",
        "AudioFormatError",
        "AudioCorruptError",
        "AudioTooLargeError",
    }
    assert said.count("decoded") > 50
    assert len(said) - said.count("decoded") > 20  # the mutations do bite
    assert max(seconds for _, _, seconds in outcomes) < PROMPT_S


@pytest.mark.parametrize("codec", ["mpeg4", "ffv1", "mjpeg", "libx264"])
def test_h08_video_decoders_are_never_opened(codec):
    """FFmpeg says so itself while it probes: `av.open` would run the decoder of every stream."""
    import av

    from diarist.audio import sandbox

    data = encode(sound(1.0, 48_000), 48_000, "matroska", "libopus", video=codec)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as log, sandbox._open(av, io.BytesIO(data)) as container:
            stream = sandbox._audio_stream(av, container)
            assert stream.codec_context.options == {"codec_whitelist": ",".join(sandbox.CODECS)}
    finally:
        av.logging.set_level(None)
    assert any("not on whitelist" in text for _, _, text in log)
    assert len(decode(data)[0]) == pytest.approx(SAMPLE_RATE, abs=800)


def test_h08_no_video_decoder_is_on_the_list():
    import av

    from diarist.audio import sandbox

    for name in sandbox.CODECS:
        assert av.Codec(name, "r").type == "audio", name


# --- 9: playlists, references, descriptions ---------------------------------------------------------------------------


def manifests(canary: Path, port: int) -> dict[str, bytes]:
    """Texts that make FFmpeg read another file, or talk to another machine."""
    url = f"http://127.0.0.1:{port}/a.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
        '<Period><AdaptationSet mimeType="audio/wav"><Representation id="0" bandwidth="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {} RTP/AVP 0\n"
    texts = {
        "hls file": hls.format(canary),
        "hls relative": hls.format(canary.name),
        "hls file url": hls.format(f"file://{canary}"),
        "hls http": hls.format(url),
        "hls concat": hls.format(f"concat:{canary}|{canary}"),
        "hls key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{canary}"\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n',
        "ffconcat": f"ffconcat version 1.0\nfile {canary.name}\n",
        "ffconcat absolute": f"ffconcat version 1.0\nfile '{canary}'\n",
        "ffconcat http": f"ffconcat version 1.0\nfile {url}\n",
        "dash file": dash.format(canary),
        "dash http": dash.format(url),
        "sdp": sdp.format(port),
        "smil": f'<smil><body><audio src="{canary}"/></body></smil>',
        "pls": f"[playlist]\nFile1={canary}\nNumberOfEntries=1\n",
        "asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
        "imf": f'<?xml version="1.0"?><AssetMap><Asset><Path>{canary}</Path></Asset></AssetMap>',
    }
    return {name: text.encode() for name, text in texts.items()}


def test_h09_manifests_read_no_file_and_reach_no_machine(tmp_path, monkeypatch):
    import av

    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary.wav"
    canary.write_bytes(encode(sound(1.0, 16_000), 16_000))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        cases = manifests(canary, server.getsockname()[1])
        with av.open(io.BytesIO(cases["ffconcat"])) as open_door:  # without our list the canary sings: the bait is real
            assert next(open_door.decode(audio=0)).samples > 0
        for name, text in cases.items():
            for disguise in ("list.m3u8", "talk.wav"):
                path = tmp_path / disguise
                path.write_bytes(text)
                started = time.monotonic()
                with path.open("rb") as file:
                    sources = [path, file, text] if disguise == "list.m3u8" else [path]
                    for source in sources:
                        with pytest.raises(AudioFormatError):
                            decode(source)
                assert time.monotonic() - started < PROMPT_S, name
        with pytest.raises(TimeoutError):
            server.accept()


def test_h09_a_playlist_behind_a_real_header_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "canary.wav").write_bytes(encode(sound(1.0, 16_000), 16_000))
    for head in (b"RIFF\x00\x00\x00\x00WAVE", b"OggS", b"ID3\x03\x00\x00\x00\x00\x00\x00", b"\x00\x00\x00\x14ftypM4A "):
        with pytest.raises(AudioError):
            decode(head + b"\n#EXTM3U\n#EXTINF:1,\ncanary.wav\n#EXT-X-ENDLIST\nffconcat version 1.0\nfile canary.wav\n")


def test_h09_an_mp4_that_keeps_its_sound_elsewhere(tmp_path, monkeypatch):
    """The data reference of a QuickTime file may name another file: here the entry `url ` with a location in it."""
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary.wav"
    canary.write_bytes(encode(sound(1.0, 16_000), 16_000))
    movie = encode(sound(1.0, 16_000), 16_000, "mov", "pcm_s16le")
    entry = b"\x00\x00\x00\x0curl \x00\x00\x00\x01"  # version 0, flag 1: the sound is in this file
    assert entry in movie
    away = b"\x00\x00\x00\x0curl \x00\x00\x00\x00"
    waveform, _, _ = decode(movie.replace(entry, away))
    np.testing.assert_allclose(waveform, decode(movie)[0])  # still the file's own bytes


# --- 11, 12: names ----------------------------------------------------------------------------------------------------

NAMES = [
    *("../../etc/passwd", "..", ".", "/", "//", "a/../b.wav", "..\\..\\a.wav", "C:\\a.wav", "\\\\host\\share"),
    *("%2e%2e%2fa.wav", "a%00.wav", "CON", "NUL.wav", "aux", "a.html", "a.svg", ".htaccess", "a.wav ", "a.wav."),
    *("a\0b.wav", "a\nb.wav", "a\r\nX: y", "\x1b[31mred", "\u202egpj.wav", "\ud800.wav", "a" * 4096, "é" * 300, ""),
    *("$(touch canary)", "`touch canary`", "; touch canary", "| touch canary", "&& touch canary", "> canary"),
    *("-i", "--help", "-", "concat:canary.wav", "file:canary.wav", "http://127.0.0.1/a.wav", "pipe:0", "list.m3u8"),
]


@pytest.mark.parametrize("name", NAMES)
def test_h11_h12_names_go_nowhere(name, tmp_path, monkeypatch):
    spool, here = tmp_path / "spool", tmp_path / "here"
    spool.mkdir()
    here.mkdir()
    monkeypatch.setenv("TMPDIR", str(spool))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(here)
    with pytest.raises(AudioFormatError) as caught:
        decode(b"not audio at all", name=name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    assert list(tmp_path.rglob("*")) == [spool, here] or sorted(tmp_path.rglob("*")) == [here, spool]


def test_h12_a_file_may_have_any_name(tmp_path):
    data = encode(sound(0.2, 16_000), 16_000)
    for name in (
        "$(touch canary).wav",
        "`id`.wav",
        "-i.wav",
        "list.m3u8",
        "a\nb.wav",
        "'\".wav",
        "concat:a|b.wav",
        "é\udcff.wav",
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert len(decode(path)[0]) == 3_200
    assert not (tmp_path / "canary").exists()
