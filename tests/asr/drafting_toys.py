"""Tiny random models whose decoding takes microseconds, and assistants that know the answer."""

import dataclasses
from itertools import count

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from diarist.asr.decoding import Decoded, DecodingLoop, Job, SpokenLanguage
from diarist.asr.features import pad_windows
from diarist.asr.options import DecodingOptions
from diarist.asr.planning import MAX_DRAFT, Assistance, Costs
from diarist.asr.rules import RuleState
from diarist.compute import Compute
from diarist.models import WhisperCheckpoint, WhisperDims
from diarist.models.readers import whisper

EXACT = Compute(torch.device("cpu"), torch.float64)
"""So exact that no two logits of a random model are confused."""
CHEAP = Costs((1, 16), (1, MAX_DRAFT + 1), ((1.0, 1.05), (1.0, 1.05)), (0.0, 0.0), (0.01, 0.01), 0.0)
"""Drafting always pays."""
DEAR = Costs((1, 16), (1, MAX_DRAFT + 1), ((1.0, 9.0), (1.0, 9.0)), (0.0, 0.0), (1.0, 1.0), 0.0)
"""Drafting never pays."""
_TASKS = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)


def toy_tokenizer() -> tokenizers.Tokenizer:
    """Single bytes, the task tokens and the timestamps."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(_TASKS))
    made.add_tokens([tokenizers.AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False) for step in range(1501)])
    return made


def toy_checkpoint(seed: int, layers: int = 2, heads: int = 2, width: int = 8, context: int = 48) -> WhisperCheckpoint:
    """Random weights; the end is made likely enough that rows end at different times."""
    n_vocab = 256 + len(_TASKS) + 1501
    dims = WhisperDims(80, 12, width, heads, 1, n_vocab, context, width, heads, layers)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in whisper.shapes(dims).items()
    }
    tensors["decoder.token_embedding.weight"][256] *= 6.0
    return WhisperCheckpoint(
        dims, tensors, toy_tokenizer(), multilingual=True, alignment_heads=((0, 0),), suppress_tokens=(5, 7), begin_suppress_tokens=(32,)
    )  # fmt: skip


def some_layers(checkpoint: WhisperCheckpoint, layers: list[int]) -> WhisperCheckpoint:
    """A decoder of some of another's layers, on the same encoder."""
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("decoder.blocks.")}
    for new, old in enumerate(layers):
        prefix = f"decoder.blocks.{old}."
        tensors |= {
            f"decoder.blocks.{new}.{name.removeprefix(prefix)}": tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
    dims = dataclasses.replace(checkpoint.dims, n_text_layer=len(layers))
    return dataclasses.replace(checkpoint, dims=dims, tensors=tensors)


def follower(checkpoint: WhisperCheckpoint, layers: list[int], seed: int) -> WhisperCheckpoint:
    """Such a decoder that reads the main decoder's hidden states, which are all but the tokens to it."""
    part = some_layers(checkpoint, layers)
    state = checkpoint.dims.n_text_state
    generator = torch.Generator().manual_seed(seed)
    fuse = {
        "decoder.fuse.weight": torch.randn(state, 2 * state, generator=generator, dtype=torch.float64),
        "decoder.fuse.bias": torch.randn(state, generator=generator, dtype=torch.float64),
    }
    return dataclasses.replace(part, tensors=part.tensors | fuse)


def toy_loop(checkpoint: WhisperCheckpoint, rows: int = 4, assistant=None, costs: Costs = CHEAP) -> DecodingLoop:
    """A loop that hears noise: the first samples of a window are its encoder states."""
    loop = DecodingLoop(checkpoint, EXACT, rows, encode_batch=2, assistant=assistant, costs=costs)
    f, state = checkpoint.dims.n_audio_ctx, checkpoint.dims.n_audio_state
    loop._features = lambda windows: windows
    loop._encoder = lambda windows: windows[:, : f * state].reshape(-1, f, state).double()
    loop._decoder = loop._passes._decoder = Counting(loop._decoder)
    return loop


class Counting:
    """A decoder that counts how often it runs."""

    def __init__(self, decoder) -> None:
        self._decoder, self.calls = decoder, 0

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def __call__(self, *args, **options):
        self.calls += 1
        return self._decoder(*args, **options)


def run(loop: DecodingLoop, waveforms, options, assistance: Assistance | None = None) -> list[Decoded]:
    """Decode windows, options for all or for each, and give what was delivered in their order."""
    results: dict[int, Decoded] = {}
    each = options if isinstance(options, list) else [options] * len(waveforms)
    for index, waveform, chosen in zip(count(), waveforms, each, strict=False):
        job = Job(
            torch.as_tensor(waveform), chosen, SpokenLanguage(chosen.language or ""),
            lambda decoded, i=index: results.setdefault(i, decoded), assistance=assistance or Assistance(),
        )  # fmt: skip
        loop.submit(job)
    while loop.pending:
        loop.step()
    return [results[index] for index in range(len(waveforms))]


def texts(loop, options, decoded):
    """Prompt, tokens and end of every row, as a scripted assistant is told them."""
    found = []
    for option, one in zip(options, decoded, strict=True):
        prompt = loop.vocabulary.prompt(
            "en",
            "transcribe",
            timestamps=option.timestamps,
            previous=loop.vocabulary.encode(" " + option.initial_prompt),
        )
        found.append([*prompt, *one.tokens, *([loop.vocabulary.end] if one.complete else [])])
    return found


class Scripted:
    """An assistant that was told what each row will say, and says it, up to where `lie` has it err.

    Args:
        texts: Prompt, tokens and end of every row.
        lie: Index in a draft to the index of its first wrong token; None if it has none.
    """

    kind, expected, encodes, follows = "scripted", 0.9, False, False

    def __init__(self, texts, lie=lambda n: None) -> None:
        self.texts, self.lie, self.given = texts, lie, count()

    def serves(self, language, task):
        return True

    def drafter(self, cache):
        return self

    def admit(self, first, windows, states):
        pass

    def move(self, source, target):
        pass

    def rest(self):
        pass

    def draft(self, rows, rules, worth):
        drafts = []
        for row in rows:
            read = len(row.text)
            told = next((text for text in self.texts if text[:read] == list(row.text)), list(row.text))
            draft = told[read : read + row.length]
            wrong = self.lie(next(self.given))
            if wrong is not None and wrong < len(draft):
                draft[wrong] = (draft[wrong] + 1) % 256
            drafts.append(draft)
        return drafts


def toy_windows(seed: int, number: int, checkpoint: WhisperCheckpoint) -> list[torch.Tensor]:
    """Noise, different in every window."""
    generator = torch.Generator().manual_seed(seed)
    samples = checkpoint.dims.n_audio_ctx * checkpoint.dims.n_audio_state
    return [torch.randn(samples, generator=generator) for _ in range(number)]


def toy_options(number: int, room: int, **changes) -> list[DecodingOptions]:
    """Options of windows: a prompt of its own tells each apart, every third writes no timestamps."""
    plain = DecodingOptions(
        "en", temperatures=(0.0,), max_tokens=room, compression_ratio_threshold=1e9, logprob_threshold=-1e9,
        assisted=True,
    )  # fmt: skip
    return [
        dataclasses.replace(
            plain, timestamps=index % 3 != 2, initial_prompt="abcdefghijklmnopqrstu"[: index + 1], **changes
        )
        for index in range(number)
    ]


class RememberingEncoder:
    """Encodes each window once for all loops of a module."""

    def __init__(self, encoder) -> None:
        self._encoder, self._known = encoder, {}

    def __call__(self, mel):
        states = []
        for window in mel:
            key = hash(window.numpy().tobytes())
            if key not in self._known:
                self._known[key] = self._encoder(window[None])
            states.append(self._known[key])
        return torch.cat(states)


def margin(loop, waveform, tokens, candidates):
    """By how much one of two tokens wins after a text; a timestamp competes with all timestamps together."""
    vocabulary = loop.vocabulary
    states = loop._encoder(loop._features(pad_windows([torch.from_numpy(waveform)], loop.compute.device)))
    loop._decoder.fill_cross_attention(states, loop._cache, 0)
    text = torch.tensor([[*vocabulary.prompt("en", "transcribe", timestamps=True), *tokens]])
    hidden = loop._decoder(text, torch.zeros(1, dtype=torch.int64), loop._cache, slice(0, 1))
    logits = loop._logits(hidden[:, -1]).float()[0]
    state = RuleState.start(torch.ones(1, dtype=torch.bool))
    for token in tokens:
        state = state.after(torch.tensor([token]), vocabulary.timestamp_begin)
    begin = vocabulary.timestamp_begin
    stamps = logits[begin + max(0, int(state.last)) :].logsumexp(0)
    both_stamps = all(token >= begin for token in candidates)
    strengths = [stamps if token >= begin and not both_stamps else logits[token] for token in candidates]
    return float(abs(strengths[0] - strengths[1]))
