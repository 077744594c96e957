"""Decoding on an accelerator: a model of large-v3's shape with random weights, diarist beside transformers.

What the weights are does not change what a token costs: every row writes the same number of tokens, from noise.
diarist's passes are recorded as CUDA graphs; transformers runs with its static cache and torch.compile, which is its
fastest way. Both are warmed up first, and both only decode: the windows are encoded beforehand.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diarist import models
from diarist.asr.decoding import DecodingLoop, Job, SpokenLanguage
from diarist.asr.options import DecodingOptions
from diarist.compute import Compute, choose
from diarist.models import WhisperCheckpoint, WhisperDims
from diarist.models.readers import whisper

LARGE = WhisperDims(128, 1500, 1280, 20, 32, 51865, 448, 1280, 20, 32)
TINY = WhisperDims(80, 1500, 64, 2, 2, 51865, 448, 64, 2, 2)
_PROMPT = (50258, 50259, 50359, 50363)  # <|startoftranscript|><|en|><|transcribe|><|notimestamps|>


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="rows decoded together [1 8 64]")
    parser.add_argument("--tokens", type=int, default=120, help="written in each row [120]")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured [3]")
    parser.add_argument("--device", default="auto", help="[auto]")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to see that it runs")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    compute = choose(options.device)
    checkpoint = random_checkpoint(TINY if options.tiny else LARGE, compute)
    print(f"{_hardware(compute)}, {compute.name}, torch {torch.__version__}, {options.tokens} tokens a row\n")
    print("| rows | diarist tokens/s | a step, ms | transformers tokens/s | ratio | encoder, windows/s |")
    print("|--:|--:|--:|--:|--:|--:|")
    for rows in options.batches:
        ours, encoder = measure_diarist(checkpoint, compute, rows, options.tokens, options.rounds)
        theirs = (
            None if options.no_peer else measure_transformers(checkpoint, compute, rows, options.tokens, options.rounds)
        )
        ratio = "" if theirs is None else f"{theirs / ours:.2f}x"
        peer = "" if theirs is None else f"{rows * options.tokens / theirs:.0f}"
        step = 1000 * ours / options.tokens
        print(
            f"| {rows} | {rows * options.tokens / ours:.0f} | {step:.2f} | {peer} | {ratio} | {encoder:.1f} |",
            flush=True,
        )


def random_checkpoint(dims: WhisperDims, compute: Compute) -> WhisperCheckpoint:
    """Random weights of a size that keeps activations in range."""
    generator = torch.Generator(compute.device).manual_seed(0)

    def tensor(shape: Sequence[int]) -> Tensor:
        made = torch.randn(tuple(shape), generator=generator, device=compute.device) * 0.02
        return made.to(compute.dtype)

    tensors = {name: tensor(shape) for name, shape in whisper.shapes(dims).items()}
    base = models.load_whisper(models.resolve("base", "asr"))
    heads = ((dims.n_text_layer - 1, 0),)
    return replace(base, dims=dims, tensors=tensors, alignment_heads=heads)


def measure_diarist(
    checkpoint: WhisperCheckpoint, compute: Compute, rows: int, tokens: int, rounds: int
) -> tuple[float, float]:
    """Seconds that decoding takes, and windows encoded in a second."""
    loop = DecodingLoop(checkpoint, compute, rows)
    options = DecodingOptions(
        "en",
        timestamps=False,
        word_timestamps=False,
        temperatures=(0.0,),
        max_tokens=tokens,
        compression_ratio_threshold=1e9,
        logprob_threshold=-1e9,
    )
    noise = torch.randn(30 * 16_000, generator=torch.Generator().manual_seed(1)) * 0.1
    decoding, encoding = [], []
    for number in range(rounds + 3):  # a shape is recorded when it is wanted for the third time
        loop.clock.seconds.clear()
        for _ in range(rows):
            loop.submit(Job(noise, options, SpokenLanguage("en"), lambda _: None))
        while loop.pending:
            loop.step()
        if number >= 3:
            decoding.append(loop.clock.seconds["write"])
            encoding.append(loop.clock.seconds["encode"])
    return statistics.median(decoding), rows / statistics.median(encoding)


def measure_transformers(checkpoint: WhisperCheckpoint, compute: Compute, rows: int, tokens: int, rounds: int) -> float:
    """Seconds that `generate` takes from encoder states on."""
    from transformers import GenerationMixin, WhisperConfig, WhisperForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    dims = checkpoint.dims
    config = WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        encoder_layers=1,  # its states are given
        encoder_attention_heads=dims.n_audio_head,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_ffn_dim=4 * dims.n_text_state,
        d_model=dims.n_text_state,
        max_target_positions=dims.n_text_ctx,
    )
    with torch.device(compute.device):
        model: Any = WhisperForConditionalGeneration(config)
    model = model.to(compute.dtype).eval()
    model.generation_config.cache_implementation = "static"
    model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    states = torch.randn(rows, dims.n_audio_ctx, dims.n_audio_state, device=compute.device).to(compute.dtype)
    prompt = torch.tensor([_PROMPT] * rows, device=compute.device)

    def generate() -> None:
        GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=prompt,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
        )

    with torch.inference_mode():
        for _ in range(3):
            generate()
        found = statistics.median(_seconds(generate, compute) for _ in range(rounds))
    torch.compiler.reset()
    return found


def _seconds(work: Callable[[], None], compute: Compute) -> float:
    def wait() -> None:
        if compute.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def _hardware(compute: Compute) -> str:
    return torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
