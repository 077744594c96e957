"""The training loop: steps over examples on disk, measured on held-out ones, kept so that it can go on after any end.

A step depends on nothing but the options, the examples and the state before it: the order of the examples is drawn
anew from the seed for each round, so a training that was interrupted goes on as if it had not been.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diarist import models
from diarist.asr.rules import suppression_bias
from diarist.asr.text import Vocabulary
from diarist.compute import Compute
from diarist.distillation.objective import Output, SoftTargets, choices, distillation_loss, passes
from diarist.distillation.student import Student
from diarist.distillation.teacher import Example, padded
from diarist.models import WhisperCheckpoint

DRAFTED = 4
"""Draft length for which tokens per pass are reported."""
_MEASUREMENTS = 20  # over the whole of a training, besides the one before it
_SAVE_EVERY_S = 60.0
_STATE = "state"  # the tensor that holds the rest of the checkpoint, as JSON


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How an assistant is trained."""

    steps: int | None = None
    """Steps in all; None goes on until `minutes` are over."""
    minutes: float = 60.0
    """Time in all, from the first look at the recordings, interruptions not counted. Whichever of both ends first."""
    batch: int = 4
    """Windows in a step: some three hundred tokens."""
    peak: float = 3e-4
    """Largest learning rate."""
    warm_up: float = 0.05
    """Share of the training in which the learning rate rises to its peak; then it falls as a cosine to a hundredth."""
    soft_share: float = 0.5
    """Weight of the teacher's distribution beside that of the token that it wrote."""
    weight_decay: float = 0.01
    """Of AdamW."""
    dropout: float = 0.1
    """Share of what each part of a layer adds that is left out in a step."""
    state_share: float = 0.5
    """Weight of the distance between its states and the teacher's, with the teacher's spread as unit."""
    own_share: float = 0.5
    """Weight of a second reading, of each token with the student's own state of the token before, not the teacher's: so
    it reads from the second token of a draft on."""
    state_noise: float = 0.5
    """Largest standard deviation of the noise that is added to the teacher's states where they are read, with their
    spread as unit; of each step it is drawn evenly up to that."""
    token_noise: float = 0.05
    """Share of the text tokens that the student reads wrong in a step. An hour of text is soon known by heart, and who
    knows it by heart does not listen: wrong tokens make the sound the better guide."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """How good the student was after some steps."""

    step: int
    seconds: float
    """Since training began, measuring counted and interruptions not."""
    loss: float | None
    """Mean training loss since the measurement before, in nats a token; None before the first step."""
    acceptance: float
    """Share of held-out tokens that it would have drafted right after what the teacher wrote, as first of a draft."""
    tokens_per_pass: float
    """Tokens that a pass of the main model yields on the held-out windows, `DRAFTED` being drafted. A draft's later
    tokens are judged with all of the text before them read as they are, which is a little too severe."""


@dataclass(slots=True)
class _Progress:
    """What a checkpoint holds besides tensors."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Since the last measurement."""
    measurements: list[Measurement] = field(default_factory=list)


class Trainer:
    """A training under way.

    Args:
        checkpoint: The main model.
        layers: Decoder layers of it that the student begins with.
        compute: Device, and the precision in which the main model runs: the student is trained in bfloat16 if that is
            one of 16 bits, with its weights in float32.
        options: How.
    """

    def __init__(
        self, checkpoint: WhisperCheckpoint, layers: Sequence[int], compute: Compute, options: TrainingOptions
    ) -> None:
        self.vocabulary = Vocabulary(
            checkpoint.tokenizer, checkpoint.dims.n_vocab, multilingual=checkpoint.multilingual
        )
        self.options = options
        self.student = Student(checkpoint.dims, checkpoint.tensors, layers, options.dropout).to(compute.device)
        self.student.eval()
        self._device = compute.device
        self._dtype = torch.float32 if compute.dtype == torch.float32 else torch.bfloat16
        bias = suppression_bias(self.vocabulary, checkpoint.suppress_tokens).to(self._device)
        self._output = Output(self.student.embedding.to(self._dtype), bias)
        self._parameters = dict(self.student.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=options.peak, weight_decay=options.weight_decay, betas=(0.9, 0.98)
        )
        self._progress = _Progress()
        self._best = self.student.trained()

    # --- where it stands ---

    @property
    def measurements(self) -> Sequence[Measurement]:
        return self._progress.measurements

    @property
    def step(self) -> int:
        return self._progress.step

    @property
    def best(self) -> Measurement:
        """The best measurement; the earliest of equals."""
        return max(self._progress.measurements, key=lambda measured: measured.tokens_per_pass)

    @property
    def best_tensors(self) -> dict[str, Tensor]:
        """The student's tensors as they were then."""
        return self._best

    def done(self, spent_s: float = 0.0) -> float:
        """Share of the training that is over, in [0, 1]; `spent_s` seconds of its time went elsewhere."""
        steps = self._progress.step / self.options.steps if self.options.steps else 0.0
        return min(1.0, max(steps, (self._progress.seconds + spent_s) / (60 * self.options.minutes)))

    # --- steps ---

    def run(
        self,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        path: Path,
        spent_s: float,
        report: Callable[[float, Measurement], None],
    ) -> None:
        """Train to the end, or until interrupted; the state is at `path` then.

        Args:
            examples: To learn from.
            held_out: To measure by.
            path: Where the checkpoint is kept.
            spent_s: Seconds of the time that went by before training.
            report: Told the share that is done and the latest measurement, after every step.
        """
        progress = self._progress
        begun = time.monotonic() - progress.seconds  # had there been no interruption
        try:
            if not progress.measurements:
                self._measure(held_out)
            saved = time.monotonic()
            while (done := self.done(spent_s)) < 1:
                self._take_step(examples, done)
                progress.seconds = time.monotonic() - begun
                after = self.done(spent_s)
                if math.floor(after * _MEASUREMENTS) > math.floor(done * _MEASUREMENTS):
                    self._measure(held_out)
                report(after, progress.measurements[-1])
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self.save(path)
                    saved = time.monotonic()
        finally:
            self.save(path)

    def _take_step(self, examples: Sequence[Example], done: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(done, self.options)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(self.options.seed * 1_000_003 + self._progress.step)
            self.student.train()
            loss = self._loss([examples[place] for place in self._places(len(examples))])
            self.student.eval()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.options.clip)
        self._optimizer.step()
        self._progress.losses.append(float(loss.detach()))
        self._progress.step += 1

    def _places(self, count: int) -> list[int]:
        """Which examples the next step takes: each once a round, rounds in orders of their own."""
        batch = min(self.options.batch, count)
        in_a_round = count // batch
        round_, place = divmod(self._progress.step, in_a_round)
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + round_)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order[place * batch : (place + 1) * batch]

    def _loss(self, batch: Sequence[Example]) -> Tensor:
        tokens, states, before = self._inputs(batch)
        tokens = noisy(tokens, self.options.token_noise, self.vocabulary)
        noise = (
            self.options.state_noise * torch.rand((), device=before.device) * before.std() * torch.randn_like(before)
        )
        first = self._hidden(tokens, states, before + noise)
        again = self._hidden(tokens, states, following(first.detach().float()))
        labels = torch.cat([example.written for example in batch]).to(self._device)
        soft = SoftTargets(
            torch.cat([example.soft.tokens for example in batch]).to(self._device),
            torch.cat([example.soft.probabilities for example in batch]).to(self._device),
        )
        wanted = torch.cat([example.hidden[example.chosen_at] for example in batch]).to(self._device).float()
        spread = wanted.std()

        def distance(read: Tensor) -> Tensor:
            """From what the teacher writes, and from its states."""
            hidden = torch.cat(_written(read, batch)).float()
            apart = torch.nn.functional.smooth_l1_loss(hidden / spread, wanted / spread)
            loss = distillation_loss(hidden, labels, soft, self._output, self.options.soft_share)
            return loss + self.options.state_share * apart

        return distance(first) + self.options.own_share * distance(again)

    # --- what it reads ---

    def _inputs(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, encoder states, and the teacher's states from which the tokens were chosen."""
        tokens = padded([example.tokens[:-1] for example in batch]).to(self._device)
        states = torch.stack([example.states for example in batch]).to(self._device)
        before = following(padded([example.hidden for example in batch]).to(self._device))
        return tokens, states.to(self._dtype), before.float()

    def _hidden(self, tokens: Tensor, states: Tensor, before: Tensor) -> Tensor:
        with self._precision():
            hidden: Tensor = self.student(tokens, states, before)
        return hidden

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    # --- measuring ---

    @torch.no_grad()
    def accepted(self, examples: Sequence[Example]) -> list[list[list[bool]]]:
        """Of each example, and each place in a draft, for each token whether it would have been drafted right there."""
        found: list[list[list[bool]]] = []
        for first in range(0, len(examples), self.options.batch):
            batch = [examples[place] for place in range(first, min(first + self.options.batch, len(examples)))]
            tokens, states, before = self._inputs(batch)
            drafts: list[list[list[bool]]] = [[] for _ in batch]
            for _ in range(DRAFTED):
                hidden = self._hidden(tokens, states, before)
                before = following(hidden.float())
                for part, example, places in zip(_written(hidden, batch), batch, drafts, strict=True):
                    written = example.written.to(self._device)
                    chosen = choices(part, written, self._output, self.vocabulary, timestamps=True)
                    places.append((chosen == written).tolist())
            found += drafts
        return found

    def _measure(self, held_out: Sequence[Example]) -> None:
        accepted = self.accepted(held_out)
        tokens = sum(len(window[0]) for window in accepted)
        progress = self._progress
        measured = Measurement(
            step=progress.step,
            seconds=progress.seconds,
            loss=sum(progress.losses) / len(progress.losses) if progress.losses else None,
            acceptance=sum(sum(window[0]) for window in accepted) / tokens,
            tokens_per_pass=tokens / sum(map(passes, accepted)),
        )
        if not progress.measurements or measured.tokens_per_pass > self.best.tokens_per_pass:
            self._best = {name: tensor.clone() for name, tensor in self.student.trained().items()}
        progress.measurements.append(measured)
        progress.losses.clear()

    # --- checkpoints ---

    def save(self, path: Path) -> None:
        """Write the state; whoever reads it finds the old one or the new one."""
        tensors: dict[str, Tensor] = {f"student.{name}": value for name, value in self._parameters.items()}
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        text = json.dumps(asdict(self._progress))
        tensors[_STATE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        models.write_tensors(path, tensors)

    def load(self, path: Path) -> None:
        """Go on where `save` left off.

        Raises:
            ModelFormatError: The file cannot be read.
        """
        stored = models.read_tensors(path)
        table: dict[str, Any] = json.loads(bytes(stored[_STATE].tolist()))
        measurements = [Measurement(**each) for each in table.pop("measurements")]
        self._progress = _Progress(**table, measurements=measurements)
        self._best = {name.removeprefix("best."): t.clone() for name, t in stored.items() if name.startswith("best.")}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(stored[f"student.{name}"])
                kept = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
                if kept["step"] in stored:
                    state = {key: stored[where].clone() for key, where in kept.items()}
                    moments = {key: value.to(self._device) for key, value in state.items() if key != "step"}
                    self._optimizer.state[parameter] = {"step": state["step"], **moments}


def following(hidden: Tensor) -> Tensor:
    """States (n, q, s) moved on by a token: of each token the state that it was chosen from, zeros for the first."""
    return torch.nn.functional.pad(hidden[:, :-1], (0, 0, 1, 0))


def _written(hidden: Tensor, batch: Sequence[Example]) -> list[Tensor]:
    """Of each example the hidden states (m, s) that choose what was written."""
    return [row[example.chosen_at] for row, example in zip(hidden, batch, strict=True)]


def noisy(tokens: Tensor, share: float, vocabulary: Vocabulary) -> Tensor:
    """Tokens with about `share` of the text tokens replaced by others at random; timestamps and prompts stay."""
    wrong = (torch.rand(tokens.shape, device=tokens.device) < share) & (tokens < vocabulary.end)
    return torch.where(wrong, torch.randint_like(tokens, vocabulary.end), tokens)


def learning_rate(done: float, options: TrainingOptions) -> float:
    """A linear rise, then half a cosine down to a hundredth of the peak.

    >>> [round(learning_rate(done, TrainingOptions(peak=1.0, warm_up=0.1)), 2) for done in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.01]
    """
    if done < options.warm_up:
        return options.peak * max(done / options.warm_up, 0.02)
    falling = (done - options.warm_up) / (1 - options.warm_up)
    return options.peak * (0.01 + 0.99 * (1 + math.cos(math.pi * falling)) / 2)
