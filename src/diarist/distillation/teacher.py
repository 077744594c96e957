"""What the main model says about windows, in the form in which an assistant learns from it.

The tokens are those of the engine itself (greedy, timestamps and suppression rules included), because a draft counts
only where it equals them. Its probabilities and last hidden states come from reading them once more, all at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diarist.asr.decoding import Decoded, DecodingLoop, Job, SpokenLanguage
from diarist.asr.network import Decoder, DecoderCache, Encoder
from diarist.asr.options import DecodingOptions
from diarist.asr.rules import suppression_bias
from diarist.compute import Compute
from diarist.distillation.objective import Output, SoftTargets, soft_targets
from diarist.models import WhisperCheckpoint

GREEDY = DecodingOptions(temperatures=(0.0,), word_timestamps=False)
_BATCH = 8  # windows that are read again together


@dataclass(frozen=True, slots=True)
class Example:
    """One window as the main model hears and writes it."""

    states: Tensor
    """Encoder states, bfloat16, shape (f, s)."""
    tokens: Tensor
    """Prompt and all that was written, the end included if it was reached; int64, shape (prompt + written,)."""
    prompt: int
    """How many of the tokens were given, not written."""
    hidden: Tensor
    """The main decoder's last hidden state at each token but the last, from which the next one was chosen; bfloat16,
    (prompt + written - 1, s)."""
    soft: SoftTargets
    """What else it held likely where a token was written."""

    @property
    def written(self) -> Tensor:
        return self.tokens[self.prompt :]

    @property
    def chosen_at(self) -> slice:
        """Positions at which the written tokens were chosen."""
        return slice(self.prompt - 1, len(self.tokens) - 1)


@dataclass(frozen=True, slots=True)
class _Heard:
    """A window that was written, not yet read again."""

    states: Tensor
    """Encoder states, bfloat16, shape (f, s)."""
    tokens: list[int]
    prompt: int


class _RememberingEncoder:
    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.last = torch.empty(0)

    def __call__(self, mel: Tensor) -> Tensor:
        self.last = self._encoder(mel)
        return self.last


class LabellingLoop(DecodingLoop):
    """A decode loop that remembers what it heard and wrote of each window."""

    def __init__(self, checkpoint: WhisperCheckpoint, compute: Compute, rows: int) -> None:
        super().__init__(checkpoint, compute, rows)
        self.heard: list[_Heard] = []
        self._states: dict[Job, Tensor] = {}
        self._encoder: Any = _RememberingEncoder(self._encoder)

    def submit(self, job: Job) -> None:
        """As ever; what is delivered is kept as well if it is worth learning."""
        deliver = job.deliver

        def overhear(decoded: Decoded) -> None:
            states = self._states.pop(job)
            repetitive = decoded.compression_ratio > job.options.compression_ratio_threshold
            if decoded.tokens and not repetitive:
                end = [self.vocabulary.end] if decoded.complete else []
                self.heard.append(_Heard(states, [*job.prompt, *decoded.tokens, *end], len(job.prompt)))
            deliver(decoded)

        job.deliver, job.whole = overhear, True  # so that states are of one length
        super().submit(job)

    def _encode(self, jobs: Sequence[Job], cache: DecoderCache, first: int) -> None:
        super()._encode(jobs, cache, first)
        for job, states in zip(jobs, self._encoder.last.to("cpu", torch.bfloat16), strict=True):
            self._states[job] = states.clone()  # of its own, so that one that is done with frees its memory


class Teacher:
    """The main model.

    Args:
        checkpoint: Its weights.
        compute: Device and precision: those that the assistant will be used with, for they decide ties.
        rows: Windows decoded at once.
    """

    def __init__(self, checkpoint: WhisperCheckpoint, compute: Compute, rows: int = 16) -> None:
        self.loop = LabellingLoop(checkpoint, compute, rows)
        self._dims, self._compute = checkpoint.dims, compute
        self._decoder = Decoder(checkpoint.dims, checkpoint.tensors, compute)
        bias = suppression_bias(self.loop.vocabulary, checkpoint.suppress_tokens).to(compute.device)
        self._output = Output(self._decoder.embedding, bias)

    def label(
        self, windows: Sequence[tuple[NDArray[np.float32], str]], step: Callable[[float], None]
    ) -> Iterator[Example]:
        """Write the text of windows whose language is known.

        Args:
            windows: Waveforms of at most 30 s, and their languages (codes).
            step: Called after every step of the loop with the share of the windows that have begun.
        """
        for index, (waveform, language) in enumerate(windows):
            spoken = SpokenLanguage(language)
            self.loop.submit(Job(torch.from_numpy(waveform), GREEDY, spoken, lambda _: None))
            while not self.loop.wanted:
                self.loop.step()
                step(index / len(windows))
            yield from self.collect(_BATCH)
        while self.loop.pending:
            self.loop.step()
            step(1.0)
        yield from self.collect()

    def collect(self, at_least: int = 1) -> Iterator[Example]:
        """Examples of what was written since the last call, unless there are fewer than `at_least`."""
        if len(self.loop.heard) < at_least:
            return
        heard, self.loop.heard = self.loop.heard, []
        for first in range(0, len(heard), _BATCH):
            yield from self._examine(heard[first : first + _BATCH])

    @torch.inference_mode()
    def _examine(self, heard: Sequence[_Heard]) -> list[Example]:
        """Read what was written once more, all positions at once."""
        device = self._compute.device
        cache = DecoderCache(self._dims, len(heard), 0, self._compute)
        states = torch.stack([each.states for each in heard]).to(device, self._compute.dtype)
        self._decoder.fill_cross_attention(states, cache, 0)
        tokens = padded([torch.tensor(each.tokens[:-1]) for each in heard]).to(device)
        starts = torch.zeros(len(heard), dtype=torch.int64, device=device)
        hidden = self._decoder(tokens, starts, cache, slice(0, len(heard)))
        own = [hidden[row, : len(each.tokens) - 1] for row, each in enumerate(heard)]
        return [
            Example(
                states=each.states,
                tokens=torch.tensor(each.tokens),
                prompt=each.prompt,
                hidden=hidden.to("cpu", torch.bfloat16).clone(),
                soft=soft_targets(hidden[each.prompt - 1 :], self._output),
            )
            for each, hidden in zip(heard, own, strict=True)
        ]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths, zeros after their ends: shape (len(rows), longest)."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
