"""Recordings made on the spot, in every container that diarist reads."""

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# name: (container, encoder, rate, channels, options of the encoder). The containers' names are FFmpeg's, of its muxers.
LOSSY = {
    "mp3": ("mp3", "libmp3lame", 44_100, 2, {}),
    "m4a": ("ipod", "aac", 44_100, 2, {}),
    "mp4": ("mp4", "aac", 48_000, 1, {}),
    "aac": ("adts", "aac", 32_000, 1, {}),
    "opus": ("ogg", "libopus", 48_000, 1, {}),
    "ogg": ("ogg", "vorbis", 44_100, 2, {"strict": "-2"}),
    "webm": ("webm", "libopus", 48_000, 2, {}),
    "mka": ("matroska", "ac3", 48_000, 6, {}),
    "amr": ("amr", "libopencore_amrnb", 8_000, 1, {"b": "12200"}),
    "wma": ("asf", "wmav2", 44_100, 1, {"b": "128k"}),
    "mp2": ("mp2", "mp2", 48_000, 1, {}),
    "wav-adpcm": ("wav", "adpcm_ms", 22_050, 1, {}),
    "wav-alaw": ("wav", "pcm_alaw", 8_000, 1, {}),
    "wav-mulaw": ("wav", "pcm_mulaw", 8_000, 1, {}),
}
LOSSLESS = {
    "wav": ("wav", "pcm_s16le"),
    "wav-s24": ("wav", "pcm_s24le"),
    "wav-s32": ("wav", "pcm_s32le"),
    "wav-f32": ("wav", "pcm_f32le"),
    "wav-f64": ("wav", "pcm_f64le"),
    "w64": ("w64", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "oga": ("ogg", "flac"),
    "aiff": ("aiff", "pcm_s16be"),
    "mov": ("mov", "pcm_s16le"),
    "alac": ("ipod", "alac"),
    "mka-flac": ("matroska", "flac"),
}


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Something like speech: a gliding voice in syllables, below 2 kHz; the same sound at any rate.

    Shape (channels, samples), in [-0.5, 0.5].
    """
    t = np.arange(round(seconds * rate)) / rate
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 2.7 * t)
    glide = 30 * (1 - np.cos(2 * np.pi * 0.6 * t)) / (2 * np.pi * 0.6)
    voices = []
    for channel in range(channels):
        phase = 2 * np.pi * ((130 + 15 * channel) * t + glide)
        voices.append(sum(np.sin(k * phase) / k for k in (1, 2, 3, 5, 9)) * syllables / 4.3)
    return np.stack(voices).astype(np.float32)


def encode(
    waveform: np.ndarray,
    rate: int,
    container: str = "wav",
    codec: str = "pcm_s16le",
    *,
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    path: Path | None = None,
    video: str | None = None,
    offset_s: float = 0.0,
    gap: tuple[float, float] | None = None,
) -> bytes:
    """A file that holds the waveform, shape (channels, samples).

    `video` adds a picture track of that codec; `offset_s` starts the sound later than it; `gap` = (at, length) leaves the
    time stamps a hole, in seconds, without any samples in it. Some options of muxers need a real file: `path`.
    """
    file = path or io.BytesIO()
    with av.open(file, "w", format=container, options=muxer_options or {}) as output:
        picture = output.add_stream(video, rate=10) if video else None
        stream = output.add_stream(codec, rate=rate, options=options or {}, layout=LAYOUTS[len(waveform)])
        if picture is not None:
            picture.width = picture.height = 64
            picture.pix_fmt = picture.codec.video_formats[0].name
            for index in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * index, np.uint8), "rgb24")
                frame.pts = index
                output.mux(picture.encode(frame.reformat(format=picture.pix_fmt)))
            output.mux(picture.encode(None))
        for packet in _packets(stream, waveform, rate):
            late = offset_s
            if gap and packet.pts is not None and packet.pts * packet.time_base >= gap[0]:
                late += gap[1]
            if late and packet.pts is not None:
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
            output.mux(packet)
    return path.read_bytes() if path else file.getvalue()


def _packets(stream, waveform: np.ndarray, rate: int) -> Iterable[av.Packet]:
    resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate)
    step = stream.frame_size or 4096
    position = 0
    for first in range(0, waveform.shape[1], step):
        part = np.ascontiguousarray(waveform[:, first : first + step].T, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout=LAYOUTS[len(waveform)])
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        for ready in resampler.resample(frame):
            ready.pts, ready.time_base = position, Fraction(1, rate)
            position += ready.samples
            yield from stream.encode(ready)
    yield from stream.encode(None)


def repeated(seconds: float, rate: int, container: str, codec: str) -> bytes:
    """Hours of silence in moments: one encoded packet, written again and again."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        options = {"frame_duration": "60"} if codec == "libopus" else {}
        stream = output.add_stream(codec, rate=rate, layout="mono", options=options)
        packets = list(_packets(stream, np.zeros((1, rate), np.float32), rate))
        model = packets[len(packets) // 2]
        step = model.duration
        data = bytes(model)
        for index in range(round(seconds / (step * model.time_base))):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, model.time_base
            packet.pts = packet.dts = index * step
            packet.duration = step
            output.mux(packet)
    return file.getvalue()
