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
from diarist.distillation.teacher import Example, pad_tokens
from diarist.models import WhisperCheckpoint

DRAFTED = 4
"""Draft length for which tokens per pass are reported."""
_MEASUREMENTS = 20  # over the whole of a training, besides the one before it
_RIDGE = 1e-2  # of the mean of the Gram matrix's diagonal
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
    peak: float = 1.5e-4
    """Largest learning rate."""
    warm_up: float = 0.05
    """Share of the training in which the learning rate rises to its peak; then it falls as a cosine to a hundredth."""
    soft_share: float = 0.5
    """Weight of the teacher's distribution beside that of the token that it wrote."""
    weight_decay: float = 0.01
    """Of AdamW."""
    dropout: float = 0.1
    """Share of what each part of a layer adds that is left out in a step."""
    token_noise: float = 0.15
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
    """Share of held-out tokens that it would have drafted right after what the teacher wrote."""
    tokens_per_pass: float
    """Tokens that a pass of the main model yields on the held-out windows, `DRAFTED` being drafted."""


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
        self._best = self.student.layers()

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
        return max(self._progress.measurements, key=lambda measured: measured.acceptance)

    @property
    def best_layers(self) -> dict[str, Tensor]:
        """The student's tensors, under openai-whisper's names, as they were then."""
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
                self._regress(examples)
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
        hidden = torch.cat(self._written_hidden(batch))
        labels = torch.cat([example.written for example in batch]).to(self._device)
        soft = SoftTargets(
            torch.cat([example.soft.tokens for example in batch]).to(self._device),
            torch.cat([example.soft.probabilities for example in batch]).to(self._device),
        )
        return distillation_loss(hidden.float(), labels, soft, self._output, self.options.soft_share)

    # --- beginning ---

    @torch.no_grad()
    def _regress(self, examples: Sequence[Example]) -> None:
        """Set the student's last product so that its hidden states come closest to the teacher's.

        A layer taken from the middle of a decoder leaves its output in another frame than the last norm expects.
        Ridge regression from the last layer's features to the teacher's states puts it right in one look at the
        examples, which takes gradient descent some hundred steps. The teacher's states are known after the norm, which
        forgets their length, so that they are brought to the length of the student's.
        """
        student = self.student
        product = student.last_product
        width = product.in_features + 1
        gram = torch.zeros(width, width, dtype=torch.float64)
        moment = torch.zeros(width, product.out_features, dtype=torch.float64)
        for first in range(0, len(examples), self.options.batch):
            batch = [examples[place] for place in range(first, min(first + self.options.batch, len(examples)))]
            tokens, states = self._inputs(batch)
            with self._precision():
                residual, features = student.features(tokens, states)
            added = product(features.float())
            for row, example in enumerate(batch):
                part = slice(example.prompt - 1, len(example.tokens) - 1)
                x, wanted = residual[row, part].float(), example.hidden.to(self._device).float()
                wanted = (wanted - student.norm_bias) / student.norm_weight
                wanted = wanted * (x + added[row, part]).std(dim=1, keepdim=True)
                known = torch.nn.functional.pad(features[row, part].float(), (0, 1), value=1.0)
                gram += (known.T @ known).double().cpu()
                moment += (known.T @ (wanted - x)).double().cpu()
        before = torch.cat([product.weight.T, product.bias[None]]).double().cpu()
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
        after = torch.linalg.solve(gram + ridge, moment + ridge @ before).float()
        product.weight.copy_(after[:-1].T)
        product.bias.copy_(after[-1])

    def _inputs(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
        tokens = pad_tokens([example.tokens[:-1] for example in batch]).to(self._device)
        states = torch.stack([example.states for example in batch]).to(self._device)
        return tokens, states.to(self._dtype)

    def _written_hidden(self, batch: Sequence[Example]) -> list[Tensor]:
        """Of each example the student's hidden states (m, s) that choose what was written."""
        tokens, states = self._inputs(batch)
        if self.student.training:
            tokens = noisy(tokens, self.options.token_noise, self.vocabulary)
        with self._precision():
            hidden = self.student(tokens, states)
        return [row[example.prompt - 1 : len(example.tokens) - 1] for row, example in zip(hidden, batch, strict=True)]

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    # --- measuring ---

    @torch.no_grad()
    def accepted(self, examples: Sequence[Example]) -> list[list[bool]]:
        """For each token of each example, whether the student would have drafted it after what the teacher wrote."""
        found: list[list[bool]] = []
        for first in range(0, len(examples), self.options.batch):
            batch = [examples[place] for place in range(first, min(first + self.options.batch, len(examples)))]
            for hidden, example in zip(self._written_hidden(batch), batch, strict=True):
                written = example.written.to(self._device)
                chosen = choices(hidden, written, self._output, self.vocabulary, timestamps=True)
                found.append((chosen == written).tolist())
        return found

    def _measure(self, held_out: Sequence[Example]) -> None:
        accepted = self.accepted(held_out)
        tokens = sum(map(len, accepted))
        progress = self._progress
        measured = Measurement(
            step=progress.step,
            seconds=progress.seconds,
            loss=sum(progress.losses) / len(progress.losses) if progress.losses else None,
            acceptance=sum(map(sum, accepted)) / tokens,
            tokens_per_pass=tokens / sum(passes(window, DRAFTED) for window in accepted),
        )
        if not progress.measurements or measured.acceptance > self.best.acceptance:
            self._best = {name: tensor.clone() for name, tensor in self.student.layers().items()}
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
