"""Assistants: whatever guesses the main model's next tokens cheaply, so that it can read many of them in one pass.

An `Assistant` is loaded once; each decode loop has a `Drafter` of it, which keeps whatever it must know of the loop's
rows. A draft can only be right or wrong: the main model decides every token, so an assistant may cut any corner. Those
here draft by the main model's timestamp rules, but from the frequent part of their vocabulary only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Protocol

import torch
from torch import Tensor

from diarist.asr.features import LogMel
from diarist.asr.mapping import TokenMapping
from diarist.asr.network import Decoder, DecoderCache, Encoder, is_native
from diarist.asr.planning import Phrases
from diarist.asr.rules import RuleState, choose
from diarist.asr.text import Vocabulary
from diarist.compute import Compute, for_few_rows, linear, rough
from diarist.errors import OptionError
from diarist.models import WhisperCheckpoint

NGRAM = "ngram"
"""Name of the assistant that is no model."""
_FREQUENT_TEXT = 24_576
"""Text tokens that are drafted. Merges are numbered by frequency: these are 95 % of English speech, at half the cost."""
_AT_ONCE = 8
"""Tokens that rows are read together with; a row that lags by more, a new one, reads them by itself."""


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One row of the batch, as a drafter sees it."""

    text: Sequence[int]
    """Prompt and tokens so far, in the main model's numbers."""
    length: int
    """How many tokens it can use at most; 0: none."""
    earlier: Phrases
    """What the same recording said before."""


class Drafter(Protocol):
    """Drafts for the rows of one loop."""

    def admit(self, first: int, windows: Tensor, states: Tensor) -> None:
        """New windows have taken the rows from `first` on.

        Args:
            first: Row.
            windows: float32, 16 kHz, padded; shape (n, samples).
            states: Of the main encoder; shape (n, f, n_audio_state).
        """

    def move(self, source: int, target: int) -> None:
        """One row has taken the place of another."""

    def rest(self) -> None:
        """No row is in use: memory of them may be handed back."""

    def draft(self, rows: Sequence[DraftRow], rules: RuleState, worth: float) -> list[list[int]]:
        """Guess what comes next.

        Args:
            rows: All rows in use.
            rules: Their state.
            worth: Nothing more is worth drafting once so few of the next tokens of all rows are expected to be right.

        Returns:
            For each row tokens of the main model, maybe none; nothing follows the end of the text.
        """


class Assistant(Protocol):
    """What drafts for a main model."""

    kind: str
    """What it is, in words."""
    expected: float
    """Probability that the next drafted token is right, before anything is known."""
    encodes: bool
    """Whether windows cost it anything when they are admitted."""
    follows: bool
    """Whether it reads the main decoder's hidden states, which the loop's cache keeps for it then."""

    def serves(self, language: str, task: str) -> bool:
        """Whether it knows how to do this; language is an ISO code."""

    def drafter(self, cache: DecoderCache) -> Drafter:
        """A drafter for a loop.

        Args:
            cache: The loop's own, of the main decoder.
        """


class NgramAssistant:
    """Proposes what followed last time: for speech, and for prompts, that repeat themselves."""

    kind = "n-gram"
    expected = 0.5
    encodes = False
    follows = False

    def serves(self, language: str, task: str) -> bool:  # noqa: ARG002 - it knows all of them
        return True

    def drafter(self, cache: DecoderCache) -> Drafter:
        return _NgramDrafter(cache.rows)


class _NgramDrafter:
    def __init__(self, rows: int) -> None:
        self._phrases = [Phrases() for _ in range(rows)]

    def admit(self, first: int, windows: Tensor, states: Tensor) -> None:  # noqa: ARG002 - it hears nothing
        for row in range(first, first + len(windows)):
            self._phrases[row] = Phrases()

    def move(self, source: int, target: int) -> None:
        self._phrases[target] = self._phrases[source]

    def rest(self) -> None:
        self._phrases = [Phrases() for _ in self._phrases]

    def draft(self, rows: Sequence[DraftRow], rules: RuleState, worth: float) -> list[list[int]]:  # noqa: ARG002
        drafts = []
        for index, row in enumerate(rows):
            mine = self._phrases[index]
            if len(mine) > len(row.text):  # the row has begun again
                mine = self._phrases[index] = Phrases()
            mine.add(row.text[len(mine) : -1])  # all but the last: a phrase that ends here has nothing after it yet
            drafts.append(mine.follow(row.text, row.length) or row.earlier.follow(row.text, row.length))
        return drafts


class DecoderAssistant:
    """A smaller Whisper, or the decoder of one.

    Where its encoder is the main model's, that one's states serve both, and a layer whose cross-attention keys and
    values are projected alike reads the main model's own. One with `decoder.fuse` follows the main decoder: it reads
    each token with the hidden state that it was chosen from, of its own drafts with its own state.

    Args:
        checkpoint: Of the assistant; without encoder tensors, its encoder is the main model's.
        main: Of the main model.
        compute: Device and precision.

    Raises:
        OptionError: It has no encoder, and cannot use the main model's states.
    """

    def __init__(self, checkpoint: WhisperCheckpoint, main: WhisperCheckpoint, compute: Compute) -> None:
        dims = checkpoint.dims
        self.dims = dims
        self.compute = compute
        self.vocabulary = Vocabulary(checkpoint.tokenizer, dims.n_vocab, multilingual=checkpoint.multilingual)
        self.mapping = TokenMapping(
            Vocabulary(main.tokenizer, main.dims.n_vocab, multilingual=main.multilingual), self.vocabulary
        )
        shared = shares_encoder(checkpoint, main)
        self.encodes = not shared
        self.kind = "decoder on the main encoder" if shared else "model with its own encoder"
        self.encoder = None if shared else Encoder(dims, checkpoint.tensors, compute)
        self.features = None if shared else LogMel(dims.n_mels, compute.device)
        self.decoder = Decoder(dims, checkpoint.tensors, rough(compute))
        self.follows = self.decoder.fuse is not None
        self.expected = 0.5 if self.follows else 0.75  # an hour of recordings makes the former, a corpus the latter
        self.borrowed = _equal_cross_attention(checkpoint, main) if shared else {}
        self.numbers = _drafted_tokens(self.vocabulary, checkpoint.suppress_tokens).to(compute.device)
        first_stamp = len(self.numbers) - 1501
        self.layout = _Frequent(first_stamp - 1, first_stamp)
        embedding = checkpoint.tensors["decoder.token_embedding.weight"]
        self.logits = linear(embedding[self.numbers.to(embedding.device)], None, for_few_rows(rough(compute)))

    def serves(self, language: str, task: str) -> bool:
        return self.mapping.serves(language, task)

    def drafter(self, cache: DecoderCache) -> Drafter:
        return _DecoderDrafter(self, cache)


@dataclass(frozen=True, slots=True)
class _Frequent:
    """Layout of the tokens that are drafted: frequent text, the end, timestamps."""

    end: int
    timestamp_begin: int


class _DecoderDrafter:
    """Reads what the main model wrote and goes on from there, in a cache of its own.

    `_read[row]` is what a row's cache holds, drafts included. What of it the main model did not confirm shows when the
    row's text is compared with it, and is overwritten. Drafts that were read with states of its own are read again with
    those of the main model.
    """

    def __init__(self, assistant: DecoderAssistant, cache: DecoderCache) -> None:
        self._of = assistant
        compute = rough(assistant.compute)
        alike = cache.is_native == is_native(assistant.dims, compute)  # in how they keep what was heard
        borrowed = {
            mine: (cache.cross_keys[theirs], cache.cross_values[theirs])
            for mine, theirs in (assistant.borrowed if alike else {}).items()
        }
        self._cache = DecoderCache(assistant.dims, cache.rows, 0, compute, borrowed)
        self._main = cache
        self._read: list[list[int]] = [[] for _ in range(cache.rows)]

    def admit(self, first: int, windows: Tensor, states: Tensor) -> None:
        if self._of.encoder is not None and self._of.features is not None:
            states = self._of.encoder(self._of.features(windows))
        self._of.decoder.fill_cross_attention(states, self._cache, first)
        for row in range(first, first + len(windows)):
            self._read[row] = []

    def move(self, source: int, target: int) -> None:
        self._cache.move_row(source, target, len(self._read[source]))
        self._read[target] = self._read[source]

    def rest(self) -> None:
        self._cache.hand_back()

    def draft(self, rows: Sequence[DraftRow], rules: RuleState, worth: float) -> list[list[int]]:
        assistant, device = self._of, self._of.compute.device
        length = max(row.length for row in rows)
        texts = [assistant.mapping.forward(row.text) if row.length else [] for row in rows]
        room = assistant.dims.n_text_ctx - length - _AT_ONCE
        texts = [text if len(text) < room else [] for text in texts]
        if not any(texts):
            return [[] for _ in rows]
        hidden = self._catch_up(texts)
        positions = torch.tensor([len(text) for text in texts], device=device)
        reach = max(len(text) for text in texts)
        right = torch.tensor([float(bool(text)) for text in texts], device=device)  # that all so far are, probably
        drafted: list[Tensor] = []
        while True:
            choice = choose(assistant.logits(hidden), rules, assistant.layout)
            tokens = assistant.numbers[choice.tokens]
            drafted.append(tokens)
            right = right * choice.logprobs().exp()
            if len(drafted) == length or float(right.sum()) < worth:
                break
            rules = rules.after(choice.tokens, assistant.layout.timestamp_begin)
            every = slice(0, len(rows))
            hidden = assistant.decoder(
                tokens[:, None], positions, self._cache, every, reach + len(drafted), before=hidden[:, None]
            )[:, 0]
            positions = positions + 1
        drafts = torch.stack(drafted, dim=1).tolist()
        for row, (text, draft) in enumerate(zip(texts, drafts, strict=True)):
            kept = [] if assistant.follows else draft[:-1]
            self._read[row] = [*text, *kept] if text else []
        return [
            self._in_main(draft)[: row.length] if text else []
            for row, text, draft in zip(rows, texts, drafts, strict=True)
        ]

    def _in_main(self, draft: list[int]) -> list[int]:
        end = self._of.vocabulary.end
        text = list(takewhile(lambda token: token != end, draft))
        return self._of.mapping.back(draft[: len(text) + 1])

    def _catch_up(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read what of each text has not been read, the last token in any case; hidden states at it, (n, state)."""
        agreed = [
            min(_common(text, read), max(len(text) - 1, 0)) for text, read in zip(texts, self._read, strict=False)
        ]
        spans = [(start, len(text)) for text, start in zip(texts, agreed, strict=True)]
        for (start, stop), run in groupby(range(len(texts)), key=spans.__getitem__):
            if stop - start > _AT_ONCE:
                rows = list(run)
                self._feed([texts[row][start:-1] for row in rows], [start] * len(rows), slice(rows[0], rows[-1] + 1))
                agreed[rows[0] : rows[-1] + 1] = [stop - 1] * len(rows)
        count = max(len(text) - start for text, start in zip(texts, agreed, strict=True))
        starts = [max(0, len(text) - count) for text in texts]  # a row that lags less reads some tokens once more
        hidden = self._feed(
            [text[start:] for text, start in zip(texts, starts, strict=True)], starts, slice(0, len(texts))
        )
        lasts = [max(len(text) - start - 1, 0) for text, start in zip(texts, starts, strict=True)]
        return hidden[torch.arange(len(texts), device=hidden.device), torch.tensor(lasts, device=hidden.device)]

    def _feed(self, tokens: Sequence[Sequence[int]], starts: Sequence[int], rows: slice) -> Tensor:
        """Hidden states (n, q, state) of tokens, padded to the longest."""
        device = self._of.compute.device
        count = max(len(each) for each in tokens)
        padded = [[*each, *[self._of.vocabulary.end] * (count - len(each))] for each in tokens]
        places = torch.tensor(starts, device=device)
        before = None
        if self._main.hidden_before is not None:
            read = places[:, None] + torch.arange(count, device=device)
            before = self._main.hidden_before[rows][torch.arange(len(tokens), device=device)[:, None], read]
        return self._of.decoder(
            torch.tensor(padded, device=device), places, self._cache, rows, max(starts) + count, before=before
        )


def shares_encoder(checkpoint: WhisperCheckpoint, main: WhisperCheckpoint) -> bool:
    """Whether an assistant can use the main encoder's states: its encoder is the same, or it has none.

    Raises:
        OptionError: It has none, and decodes states of another width or length.
    """
    names = [name for name in checkpoint.tensors if name.startswith("encoder.")]
    fits = (checkpoint.dims.n_text_state, checkpoint.dims.n_audio_ctx) == (
        main.dims.n_audio_state,
        main.dims.n_audio_ctx,
    )
    if not names:
        if not fits:
            raise OptionError("assistant_model", "it has no encoder, and the main model's does not fit it")
        return True
    mine, theirs = checkpoint.tensors, main.tensors
    return (
        fits
        and set(names) == {name for name in theirs if name.startswith("encoder.")}
        and all(_equal(mine[name], theirs[name]) for name in names)
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether weights are the same, in the coarser of their types: copies are often stored in half precision."""
    if one.shape != other.shape:
        return False
    coarser = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(coarser), other.to(coarser))


def _equal_cross_attention(checkpoint: WhisperCheckpoint, main: WhisperCheckpoint) -> dict[int, int]:
    """Layers of an assistant whose cross-attention keys and values are those of a layer of the main model."""
    if (checkpoint.dims.n_text_state, checkpoint.dims.n_text_head) != (main.dims.n_text_state, main.dims.n_text_head):
        return {}

    def alike(mine: int, theirs: int) -> bool:
        return all(
            _equal(
                checkpoint.tensors[f"decoder.blocks.{mine}.cross_attn.{part}"],
                main.tensors[f"decoder.blocks.{theirs}.cross_attn.{part}"],
            )
            for part in ("key.weight", "value.weight", "value.bias")
        )

    found = {}
    for mine in range(checkpoint.dims.n_text_layer):
        same = next((theirs for theirs in range(main.dims.n_text_layer) if alike(mine, theirs)), None)
        if same is not None:
            found[mine] = same
    return found


def _drafted_tokens(vocabulary: Vocabulary, suppressed: Sequence[int]) -> Tensor:
    """Numbers of the tokens that are drafted, in the order of `_Frequent`."""
    never = set(suppressed)
    text = [token for token in range(min(vocabulary.end, _FREQUENT_TEXT)) if token not in never]
    return torch.tensor([*text, vocabulary.end, *range(vocabulary.timestamp_begin, vocabulary.timestamp_begin + 1501)])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common from the start."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
