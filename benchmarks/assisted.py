"""What an assistant brings: the same recordings decoded with and without, as one markdown table.

Whisper base, English given; the speech track is the references', so only recognition is timed. Each round does every
cell once in every way, one after the other, so that a disturbance hits all alike; ratios are medians of the rounds'.
"forced" drafts always, "auto" where it is expected to pay. "decoding" leaves out the encoders and what is done once for
every window.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from diarist import models
from diarist.asr.decoding import DecodingLoop
from diarist.asr.drafting import NGRAM, Assistant, DecoderAssistant, NgramAssistant
from diarist.asr.options import DecodingOptions
from diarist.asr.planning import Assistance
from diarist.asr.recognizer import RecognitionStream
from diarist.audio import SAMPLE_RATE, decode
from diarist.compute import Compute, choose
from diarist.timeline import Segment
from recordings import SHARED, conversations

Asked = Literal["auto"] | bool
_OPTIONS = DecodingOptions("en")


@dataclass(frozen=True, slots=True)
class Sound:
    """One recording: mono samples at 16 kHz, and where somebody speaks."""

    waveform: NDArray[np.float32]
    speech: tuple[Segment, ...]

    def first(self, seconds: float) -> "Sound":
        whole = Segment(0.0, seconds)
        return Sound(
            self.waveform[: round(seconds * SAMPLE_RATE)],
            tuple(part for segment in self.speech if (part := segment & whole)),
        )


@dataclass(slots=True)
class Track:
    """One way of decoding one cell, over the rounds."""

    seconds: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)
    """Of these, spent drafting and writing."""
    assistance: Assistance = field(default_factory=Assistance)
    """Of the last round."""
    text: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="processor threads [2]")
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is done [5]")
    parser.add_argument("--rows", type=int, default=16, help="windows decoded together in the last cell [16]")
    parser.add_argument("--model", default="base", help="main model [base]")
    parser.add_argument("--device", default="auto", help="[auto]")
    parser.add_argument("--dtype", default="auto", help="[auto]")
    parser.add_argument("--assistant", action="append", default=[], help="one more assistant: a name or path")
    parser.add_argument("--only", nargs="+", choices=("short", "long", "batch"), help="cells [all]")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="shared recordings [../shared/data]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compute = choose(options.device, options.dtype)
    cells = {name: cell for name, cell in read_cells(options.data).items() if not options.only or name in options.only}
    loops = make_loops(options.model, [NGRAM, "tiny.en", *options.assistant], compute, options.rows)
    ways: list[tuple[str, Asked]] = [("none", False)]
    ways += [(name, asked) for name in loops if name != "none" for asked in (True, "auto")]
    tracks: dict[tuple[str, str, Asked], Track] = {}
    for round_ in range(options.rounds + 1):
        for cell, sounds in cells.items():
            for name, asked in ways:
                track = run(loops[name], sounds, asked, tracks.setdefault((cell, name, asked), Track()))
                if round_ == 0:  # the first time everything is warmed up
                    track.seconds, track.decoding = [], []
    print(f"{options.model}, {compute.name}, {options.threads} threads, {options.rounds} rounds\n")
    print_table(cells, ways, tracks)


def read_cells(data: Path) -> dict[str, list[Sound]]:
    """The recordings of each cell, which are decoded at once."""
    sounds = []
    for conversation in conversations(data):
        spans = sorted((turn.start, turn.end) for turn in conversation.turns)
        sounds.append(Sound(decode(conversation.audio)[0], tuple(joined_spans(spans))))
    return {"short": [sounds[0].first(8.0)], "long": [sounds[0].first(60.0)], "batch": sounds}


def joined_spans(spans: Sequence[tuple[float, float]]) -> list[Segment]:
    """Spans in order of their start, those that touch joined."""
    found: list[Segment] = []
    for start, end in spans:
        if found and start <= found[-1].end:
            found[-1] = Segment(found[-1].start, max(found[-1].end, end))
        else:
            found.append(Segment(start, end))
    return found


def make_loops(model: str, assistants: Sequence[str], compute: Compute, rows: int) -> dict[str, DecodingLoop]:
    """A loop without assistant, and one for each."""
    checkpoint = models.load_whisper(models.resolve(model, "asr"))
    loops = {"none": DecodingLoop(checkpoint, compute, rows)}
    for name in assistants:
        begun = time.perf_counter()
        assistant: Assistant
        if name == NGRAM:
            assistant = NgramAssistant()
        else:
            local = models.resolve(name, "asr")
            made = models.is_assistant(local)
            drafts = models.load_assistant(local, checkpoint) if made else models.load_whisper(local)
            assistant = DecoderAssistant(drafts, checkpoint, compute)
        loaded = time.perf_counter()
        loop = loops[name] = DecodingLoop(checkpoint, compute, rows, assistant=assistant)
        now = time.perf_counter()
        print(f"{name}: {assistant.kind}, loaded in {loaded - begun:.1f} s, calibrated in {now - loaded:.1f} s")
        if loop.costs is not None:
            table = "; ".join(
                f"{n} rows: {', '.join(f'{1e3 * s:.1f}' for s in row)} ms, a draft {1e3 * draft:.1f} ms"
                for n, row, draft in zip(loop.costs.rows, loop.costs.passes, loop.costs.drafts, strict=True)
            )
            print(f"  passes over {loop.costs.tokens} tokens: {table}; a window {1e3 * loop.costs.admit:.0f} ms")
    return loops


def run(loop: DecodingLoop, sounds: Sequence[Sound], asked: Asked, track: Track) -> Track:
    """Decode recordings at once and add what it took."""
    loop.clock.seconds.clear()
    begun = time.perf_counter()
    streams = [RecognitionStream(loop, replace(_OPTIONS, assisted=asked)) for _ in sounds]
    for stream, sound in zip(streams, sounds, strict=True):
        stream.push(sound.speech, sound.waveform, 0.0, final=True)
    while any(stream.waiting for stream in streams):
        loop.step()
    track.seconds.append(time.perf_counter() - begun)
    track.decoding.append(loop.clock.seconds["draft"] + loop.clock.seconds["write"])
    results = [stream.result() for stream in streams]
    track.text = "\n".join(word.text for result in results for word in result.words)
    track.assistance = Assistance()
    for result in results:
        for name in ("passes", "tokens", "assisted", "drafted", "accepted"):
            setattr(track.assistance, name, getattr(track.assistance, name) + getattr(result.assistance, name))
    return track


def print_table(
    cells: dict[str, list[Sound]], ways: Sequence[tuple[str, Asked]], tracks: dict[tuple[str, str, Asked], Track]
) -> None:
    print(
        "| cell | assistant | asked | seconds | faster | decoding faster | decoder's share | passes assisted |"
        " acceptance | tokens a pass | same text |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|"
    )
    for cell in cells:
        plain = tracks[cell, "none", False]
        for name, asked in ways:
            track = tracks[cell, name, asked]
            summary = track.assistance.summary
            faster = statistics.median(p / t for p, t in zip(plain.seconds, track.seconds, strict=True))
            decoding = statistics.median(p / t for p, t in zip(plain.decoding, track.decoding, strict=True))
            share = statistics.median(d / t for d, t in zip(track.decoding, track.seconds, strict=True))
            print(
                f"| {cell} | {name} | {'auto' if asked == 'auto' else 'forced' if asked else '-'} |"
                f" {statistics.median(track.seconds):.2f} | {faster:.2f}x | {decoding:.2f}x | {share:.0%} |"
                f" {summary['assisted_passes']:.0%} | {summary['acceptance_rate']:.0%} |"
                f" {summary['tokens_per_pass']:.2f} | {'yes' if track.text == plain.text else 'no'} |"
            )


if __name__ == "__main__":
    main()
