"""The decode loop: rows of a batch that start, step and finish each on its own.

Windows wait in a queue. Whenever enough rows of the batch are free the next windows are encoded together and take
them; every step writes a token in each row; a row that ends is judged, decoded again at the next temperature if its
text is not trusted, and otherwise gives its place to the next window. So the batch stays full over a whole recording
(and over many at once), a long window never holds up a short one, and finished rows cost nothing.

With an assistant a step may write several tokens in a row (Leviathan et al. 2023): the assistant drafts them, one pass
reads them all, the rules choose a token after each, and the row keeps those that were drafted right and the one chosen
after them. That is what it would have written without, token by token. Rows keep different numbers of tokens; their
positions in the cache are their own, so nothing is realigned, and what was read of a wrong draft is overwritten.
"""

import copy
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, takewhile

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diarist import native
from diarist.asr.alignment import attention_similarity, token_starts, within_passages
from diarist.asr.beam import beam_search
from diarist.asr.drafting import Assistant, Drafter, DraftRow
from diarist.asr.features import (
    FRAMES_PER_POSITION,
    HOP_SAMPLES,
    POSITION_S,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    LogMel,
    fitting_length,
    pad_windows,
)
from diarist.asr.network import Decoder, DecoderCache, Encoder
from diarist.asr.options import DecodingOptions
from diarist.asr.passes import Passes, PassRow
from diarist.asr.planning import MAX_DRAFT, Agreement, Assistance, Costs, Phrases, pays, plan
from diarist.asr.rules import RuleState, packed_state, sample, suppression_bias
from diarist.asr.text import Vocabulary
from diarist.compute import Compute, for_few_rows, linear, recorder
from diarist.contention import undisturbed
from diarist.importing import import_rest
from diarist.models import WhisperCheckpoint
from diarist.stopwatch import Stopwatch

_SEED = 0
_ADMITTED = 4.0  # outcomes of drafts that what is known of a recording counts for in a new row
_TOKENS_PER_S = 4.0  # of speech, about
_CALIBRATED_TOKENS = (1, 3, MAX_DRAFT + 1)
_CALIBRATED_DRAFT = 4
_CALIBRATION_S = 0.8
_CALIBRATION_ROUNDS = 9  # the best of which is not what somebody else disturbed
_CALIBRATION_POSITION = 24
_TIMESTAMP_SLACK = 25  # encoder positions, half a second: timestamps are often off by a few tenths


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the model wrote for one window."""

    tokens: tuple[int, ...]
    """Text and timestamp tokens, without the end."""
    logprobs: tuple[float, ...]
    """Of each token."""
    starts: tuple[float, ...]
    """When each token, and what follows the last, begins by cross-attention, in seconds from the window's start.

    One more than `tokens`; empty if word times were not asked for.
    """
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    complete: bool
    """Whether the model ended by itself, rather than at the token limit."""


@dataclass(slots=True)
class SpokenLanguage:
    """The language of a recording: shared by its windows, found from the first of them that are encoded."""

    code: str = ""
    """ISO code; empty until known."""
    probability: float = 1.0


@dataclass(slots=True, eq=False)
class Job:
    """One window on its way through the loop."""

    waveform: Tensor
    """float32, 16 kHz, shape (samples,), at most one window."""
    options: DecodingOptions
    spoken: SpokenLanguage
    deliver: Callable[[Decoded], None]
    """Called with the result, from `DecodingLoop.step`."""
    fail: Callable[[Exception], None] | None = None
    """Called by `DecodingLoop.give_up`, instead of `deliver`."""
    cancelled: bool = False
    """Set by the owner: the job is dropped at the next step and delivers nothing."""
    whole: bool = False
    """Read with all of the silence that fills a window: without most of it the text was not to be trusted."""
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    attempt: int = 0
    no_speech_prob: float = 0.0
    assistance: Assistance = field(default_factory=Assistance)
    """Of the recording."""
    admitted: bool = False
    """The assistant knows the window."""
    agreement: Agreement = field(default_factory=lambda: Agreement(30))
    """Of this window."""

    @property
    def temperature(self) -> float:
        return self.options.temperatures[self.attempt]

    @property
    def beam_size(self) -> int:
        """Hypotheses of this attempt: as in openai-whisper, sampling takes the place of the beam."""
        return self.options.beam_size if self.temperature == 0 else 1

    @property
    def next_position(self) -> int:
        """Where the next token goes: everything before it has been read."""
        return len(self.prompt) + len(self.tokens)

    @property
    def last_token(self) -> int:
        return self.tokens[-1] if self.tokens else self.prompt[-1]


class DecodingLoop:
    """Runs jobs, at most `rows` at a time. Not thread-safe.

    Args:
        checkpoint: The model.
        compute: Device and precision.
        rows: Size of the batch: memory and throughput grow with it.
        encode_batch: Windows encoded at once at most.
        assistant: Drafts for the model; None leaves every token to the model alone.
        costs: Of this hardware, to plan drafts with; None measures them.
    """

    def __init__(
        self,
        checkpoint: WhisperCheckpoint,
        compute: Compute,
        rows: int = 16,
        encode_batch: int = 4,
        assistant: Assistant | None = None,
        costs: Costs | None = None,
    ) -> None:
        dims = checkpoint.dims
        self.vocabulary = Vocabulary(checkpoint.tokenizer, dims.n_vocab, multilingual=checkpoint.multilingual)
        self.dims = dims
        self.compute = compute
        self._features = LogMel(dims.n_mels, compute.device)
        bias = suppression_bias(self.vocabulary, checkpoint.suppress_tokens)
        with ThreadPoolExecutor() as pool:  # making weights ready leaves processors idle
            encoder = pool.submit(Encoder, dims, checkpoint.tensors, compute)
            decoder = pool.submit(Decoder, dims, checkpoint.tensors, compute, checkpoint.alignment_heads)
            embedding = checkpoint.tensors["decoder.token_embedding.weight"]
            self._logits = linear(embedding, bias, for_few_rows(compute))
            self._encoder, self._decoder = encoder.result(), decoder.result()
        self._blank = tuple(number for number in checkpoint.begin_suppress_tokens if number < self.vocabulary.end)
        self.assistant = assistant
        self.costs = costs
        self._begin(rows, encode_batch)
        if self._drafter is not None and costs is None:
            self.costs = self._calibrate(self._drafter)

    def _begin(self, rows: int, encode_batch: int) -> None:
        """Everything that two loops over the same weights do not share."""
        self.rows = rows
        self.encode_batch = min(encode_batch, rows)
        self.limit = rows
        """Rows that may be in use; lowered by `restart`."""
        self._cache = DecoderCache(
            self.dims,
            rows,
            len(self._decoder.alignment_heads),
            self.compute,
            keep_hidden=self.assistant is not None and self.assistant.follows,
        )
        self._beam_cache: DecoderCache | None = None
        self._generator: torch.Generator | None = None
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []  # job i owns cache row i
        self._passes = Passes(
            self._decoder, self._logits, self.vocabulary, self._blank, self._cache, recorder(self.compute)
        )
        self._drafter: Drafter | None = self.assistant.drafter(self._cache) if self.assistant else None
        self.clock = Stopwatch()
        """Seconds spent in "encode", "draft" and "write"."""

    def sibling(self, rows: int, encode_batch: int) -> "DecodingLoop":
        """Another loop over the same weights, with jobs and a cache of its own."""
        other = copy.copy(self)
        other._begin(rows, encode_batch)  # noqa: SLF001 - one class
        return other

    @property
    def pending(self) -> int:
        """Jobs that have not delivered yet."""
        return len(self._waiting) + len(self._active)

    @property
    def wanted(self) -> int:
        """How many more jobs keep the batch full until the next are encoded."""
        return max(0, self.limit + self.encode_batch - self.pending)

    @property
    def active(self) -> int:
        """Rows in use."""
        return len(self._active)

    def submit(self, job: Job) -> None:
        """Queue a window; a later `step` delivers it."""
        self._waiting.append(job)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit what fits, write a token or more in every row, deliver what is finished."""
        with undisturbed(self.compute.device):
            self._step()

    def _step(self) -> None:
        self._drop_cancelled()
        if self._waiting and self._waiting[0].beam_size > 1 and len(self._active) < self.limit:
            self._search(self._waiting[0])
        self._admit()
        if self._active:
            with self.clock.timed("draft"):
                drafts = self._draft()
            with self.clock.timed("write"):
                self._write_tokens(drafts)
            self._finish_rows()

    def restart(self, limit: int) -> None:
        """After a step that raised: what was under way begins again, at most `limit` windows at a time."""
        for job in self._active:
            job.tokens, job.logprobs = [], []
        self._waiting.extendleft(reversed(self._active))
        self._active = []
        self._beam_cache = None
        self.limit = min(max(1, limit), self.rows)

    def give_up(self, error: Exception) -> None:
        """After a `restart`: the window that would be next fails with `error`."""
        job = self._waiting.popleft()
        if job.fail is not None:
            job.fail(error)

    def relax(self) -> None:
        """After steps that went well: twice as many rows may be in use again, up to `rows`."""
        self.limit = min(2 * self.limit, self.rows)

    def rest(self) -> None:
        """While there is nothing to do: let the system have the memory that only windows under way need."""
        if not self.pending:
            self._beam_cache = None
            self._cache.hand_back()
            if self._drafter is not None:
                self._drafter.rest()

    def _drop_cancelled(self) -> None:
        if any(job.cancelled for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for row in reversed(range(len(self._active))):
            if self._active[row].cancelled:
                self._release(row)

    def _admit(self) -> None:
        """Encode the next windows if a whole encoder batch, or all that wait, fit.

        One batch in a step, so that no step lasts long.
        """
        first = list(islice(self._waiting, min(self.encode_batch, self.limit)))
        count = sum(1 for _ in takewhile(lambda job: job.beam_size == 1, first))
        if count and self.limit - len(self._active) >= count:
            with self.clock.timed("encode"):
                self._start([self._waiting.popleft() for _ in range(count)])

    def _start(self, jobs: Sequence[Job]) -> None:
        """Give windows their rows: encode them, find their language, read their prompts up to the last token."""
        first = len(self._active)
        self._active += jobs
        self._encode(jobs, self._cache, first)

    def _encode(self, jobs: Sequence[Job], cache: DecoderCache, first: int) -> None:
        heard: list[tuple[int, Tensor, Tensor]] = []  # first row, windows, states
        lengths = [self._length(job) for job in jobs]
        for start, stop in _equal_runs(lengths):
            windows = pad_windows([job.waveform for job in jobs[start:stop]], self.compute.device, lengths[start])
            states = self._encoder(self._features(windows))
            self._decoder.fill_cross_attention(states, cache, first + start)
            heard.append((first + start, windows, states))
        self._find_languages(jobs, cache, first)
        for job in jobs:
            job.prompt = self._prompt(job)
        for start, stop in _equal_runs([len(job.prompt) for job in jobs]):
            self._read_prompts(jobs[start:stop], cache, slice(first + start, first + stop))
        if cache is self._cache and self._drafter is not None and self.assistant is not None:
            for job in jobs:
                job.admitted = self._admits(job, self.assistant)
            if any(job.admitted for job in jobs):
                for admitted in heard:
                    self._drafter.admit(*admitted)

    def _length(self, job: Job) -> int:
        """Samples of a window with its silence. An accelerator has passes of a few shapes, so all of one length."""
        if job.whole or self.compute.device.type != "cpu":
            return WINDOW_SAMPLES
        return fitting_length(len(job.waveform))

    def _is_short(self, job: Job) -> bool:
        return self._length(job) < WINDOW_SAMPLES

    def _search(self, job: Job) -> None:
        """Decode one window by beam search, in a cache of its own."""
        if self._beam_cache is None or self._beam_cache.rows < job.beam_size:
            heads = len(self._decoder.alignment_heads)
            self._beam_cache = DecoderCache(self.dims, job.beam_size, heads, self.compute)
        self._encode([job], self._beam_cache, 0)
        best = beam_search(
            self._decoder,
            self._logits,
            self.vocabulary,
            self._beam_cache,
            job.prompt,
            self._rule_state([job]),
            beam_size=job.beam_size,
            max_tokens=self._room(job),
            blank=self._blank,
        )
        job.tokens, job.logprobs = list(best.tokens), list(best.logprobs)
        result = self._judge(job, self._beam_cache, 0)
        if result is None:
            self._restart(job)
        else:
            self._waiting.popleft()
            job.deliver(result)

    def _rule_state(self, jobs: Sequence[Job]) -> RuleState:
        """Of rows that have written what the jobs hold."""
        begin = self.vocabulary.timestamp_begin
        packed = [packed_state(job.tokens, begin, timestamps=job.options.timestamps) for job in jobs]
        return RuleState.unpacked(torch.tensor(packed, device=self.compute.device))

    def _prompt(self, job: Job) -> list[int]:
        texts = [text.strip() for text in (job.options.hotwords, job.options.initial_prompt) if text and text.strip()]
        previous = [token for text in texts for token in self.vocabulary.encode(f" {text}")]
        room = self.dims.n_text_ctx - job.options.max_tokens - 1  # less <|startofprev|>
        return self.vocabulary.prompt(
            job.spoken.code, job.options.task, timestamps=job.options.timestamps, previous=previous[-room:]
        )

    def _find_languages(self, jobs: Sequence[Job], cache: DecoderCache, first: int) -> None:
        """Settle the language of recordings that do not have one yet, by the mean over their windows among `jobs`."""
        undecided = {id(job.spoken): job.spoken for job in jobs if not job.spoken.code}
        if not undecided:
            return
        probabilities = self._language_probabilities(cache, slice(first, first + len(jobs)))
        for key, spoken in undecided.items():
            windows = [row for row, job in enumerate(jobs) if id(job.spoken) == key]
            mean = probabilities[windows].mean(dim=0)
            best = int(mean.argmax())
            spoken.code, spoken.probability = list(self.vocabulary.languages)[best], float(mean[best])

    def _language_probabilities(self, cache: DecoderCache, rows: slice) -> Tensor:
        """Of each row's window: float32, shape (n, languages), in the order of `Vocabulary.languages`."""
        n = rows.stop - rows.start
        tokens = torch.full((n, 1), self.vocabulary.start, device=self.compute.device)
        hidden = self._decoder(tokens, torch.zeros_like(tokens[:, 0]), cache, rows)
        numbers = list(self.vocabulary.languages.values())
        return (hidden[:, 0].float() @ self._decoder.embedding[numbers].float().T).softmax(dim=1)

    def _read_prompts(self, jobs: Sequence[Job], cache: DecoderCache, rows: slice) -> None:
        """Read all but the last token of equally long prompts; the last one is the first that `step` reads."""
        prompts = torch.tensor([job.prompt for job in jobs], device=self.compute.device)
        read = max(prompts.shape[1] - 1, 1)  # an English-only prompt is one token, which is read twice
        hidden = self._decoder(prompts[:, :read], torch.zeros_like(prompts[:, 0]), cache, rows)
        starts = [job.prompt.index(self.vocabulary.start) for job in jobs]
        at_start = hidden[torch.arange(len(jobs)), torch.tensor(starts)]
        probabilities = self._unsuppressed_logits(at_start).softmax(dim=1)[:, self.vocabulary.no_speech]
        for job, probability in zip(jobs, probabilities.tolist(), strict=True):
            job.no_speech_prob = probability

    def _unsuppressed_logits(self, hidden: Tensor) -> Tensor:
        if isinstance(self._logits, native.Product):
            return self._logits.unbiased(hidden)
        embedding = self._decoder.embedding
        return F.linear(hidden.to(embedding.dtype), embedding).float()

    def _admits(self, job: Job, assistant: Assistant) -> bool:
        """Whether the assistant is told of a window that is starting."""
        options = job.options
        if not options.assisted or self.costs is None or not assistant.serves(job.spoken.code, options.task):
            return False
        if options.assisted is True or not assistant.encodes:
            return True
        tokens = _TOKENS_PER_S * len(job.waveform) / SAMPLE_RATE_HZ
        rows = min(self.limit, self.pending)
        agreement = job.assistance.agreement.estimate(assistant.expected, _ADMITTED)
        return pays(agreement, tokens, rows, self.costs, self._length(job) / WINDOW_SAMPLES)

    def _draft(self) -> list[list[int]]:
        """For each row what the assistant guesses comes next, main tokens; nothing where that does not pay."""
        nothing: list[list[int]] = [[] for _ in self._active]
        if self._drafter is None or self.assistant is None or self.costs is None:
            return nothing
        furthest = max(job.next_position for job in self._active)
        fits = min(MAX_DRAFT, self.dims.n_text_ctx - furthest)  # rows are padded to the longest draft
        most = [self._most_drafted(job, fits) for job in self._active]
        if not any(most):
            return nothing
        expected = self.assistant.expected
        agreement = [
            job.agreement.estimate(job.assistance.agreement.estimate(expected, _ADMITTED), _ADMITTED)
            for job in self._active
        ]
        least = int(any(job.options.assisted is True for job, some in zip(self._active, most, strict=True) if some))
        planned = plan(agreement, most, self.costs, least=least)
        if not planned.length:
            return nothing
        rows = [
            DraftRow([*job.prompt, *job.tokens], some, job.assistance.phrases)
            for job, some in zip(self._active, most, strict=True)
        ]
        drafts = self._drafter.draft(rows, self._rule_state(self._active), planned.worth)
        read = plan(agreement, [len(draft) for draft in drafts], self.costs, sunk=True, least=least).length
        return [draft[:read] for draft in drafts]

    def _most_drafted(self, job: Job, fits: int) -> int:
        """How many drafted tokens a row can use: its last one is always the main model's."""
        if not job.admitted or job.temperature > 0:
            return 0
        return max(0, min(fits, self._room(job) - len(job.tokens) - 1))

    def _random_numbers(self) -> torch.Generator:
        """Most recordings need none."""
        if self._generator is None:
            import_rest()
            self._generator = torch.Generator(self.compute.device).manual_seed(_SEED)
        return self._generator

    def _write_tokens(self, drafts: Sequence[Sequence[int]]) -> None:
        """Read each row's last token and its draft, and write what was drafted right and one token more."""
        passed = self._passes([_pass_row(job, draft) for job, draft in zip(self._active, drafts, strict=True)])
        sampled = {}
        heated = [row for row, job in enumerate(self._active) if job.temperature > 0]
        if heated:
            rows = torch.tensor(heated, device=self.compute.device)
            temperatures = torch.tensor([self._active[row].temperature for row in heated], device=self.compute.device)
            found = sample(
                passed.logits[rows],
                passed.state.select(rows),
                self.vocabulary,
                temperatures,
                self._random_numbers(),
                () if all(self._active[row].tokens for row in heated) else self._blank,
            )
            sampled = dict(zip(heated, zip(*(each.tolist() for each in found), strict=True), strict=True))
        for row, (job, draft, accepted) in enumerate(zip(self._active, drafts, passed.accepted, strict=True)):
            written = [sampled[row]] if row in sampled else accepted
            end = next(
                (place for place, (token, _) in enumerate(written) if token == self.vocabulary.end), len(written)
            )
            written = written[: end + 1]
            job.tokens += [token for token, _ in written]
            job.logprobs += [logprob for _, logprob in written]
            right = len(accepted) - 1
            job.assistance.count(len(written), len(draft), right)
            if draft:
                job.agreement.update(right, rejected=right < len(draft))

    @torch.inference_mode()
    def _calibrate(self, drafter: Drafter) -> Costs:
        """Measure what planning needs, in about a second: the best of some times of each while there is time."""
        begun = time.perf_counter()
        sizes = (1, self.rows) if self.rows > 1 else (1,)
        spoken = SpokenLanguage("en")
        text = self.vocabulary.encode(" the")[:1] * _CALIBRATION_POSITION

        def measured(work: Callable[[], object]) -> float:
            times = [_seconds(work)]
            while len(times) < _CALIBRATION_ROUNDS and time.perf_counter() - begun < _CALIBRATION_S:
                times.append(_seconds(work))
            return min(times)

        def passes(tokens: int) -> float:
            rows = [_pass_row(job, text[: tokens - 1]) for job in self._active]
            return measured(lambda: self._passes(rows))

        def drafted(length: int) -> float:
            def draft() -> None:
                rows = [DraftRow([*job.prompt, *job.tokens], length, Phrases()) for job in self._active]
                drafter.draft(rows, self._rule_state(self._active), 0.0)

            draft()  # reads the text
            return measured(draft)

        windows = torch.zeros(1, WINDOW_SAMPLES, device=self.compute.device)
        states = torch.zeros(
            1, self.dims.n_audio_ctx, self.dims.n_audio_state, device=self.compute.device, dtype=self.compute.dtype
        )
        admit = measured(lambda: drafter.admit(0, windows, states))
        table: list[tuple[float, ...]] = []
        begins: list[float] = []
        drafts: list[float] = []
        try:
            for rows in sizes:
                self._active = [
                    Job(windows[0], DecodingOptions(), spoken, lambda _: None, prompt=[self.vocabulary.start, *text])
                    for _ in range(rows)
                ]
                self._passes([_pass_row(job, ()) for job in self._active])  # memory is had at the first touch
                table.append(tuple(passes(tokens) for tokens in _CALIBRATED_TOKENS))
                one, several = drafted(1), drafted(_CALIBRATED_DRAFT)
                drafts.append(max(0.0, several - one) / (_CALIBRATED_DRAFT - 1))
                begins.append(max(0.0, one - drafts[-1]))
        finally:
            self._active = []
        return Costs(sizes, _CALIBRATED_TOKENS, tuple(table), tuple(begins), tuple(drafts), admit)

    def _finish_rows(self) -> None:
        """Deliver or restart the rows that have written their last token."""
        for row in reversed(range(len(self._active))):
            job = self._active[row]
            if job.tokens[-1] != self.vocabulary.end and len(job.tokens) < self._room(job):
                continue
            result = self._judge(job, self._cache, row)
            if result is not None:
                self._release(row)
                job.assistance.phrases.add(result.tokens)
                job.deliver(result)
            else:
                if self._is_short(job):  # to be encoded again
                    self._release(row)
                    self._waiting.appendleft(job)
                self._restart(job)

    def _room(self, job: Job) -> int:
        """Tokens that may be written after the prompt."""
        return min(job.options.max_tokens, self.dims.n_text_ctx - len(job.prompt))

    def _restart(self, job: Job) -> None:
        """Begin a window anew: with all of its silence if it had little, else at the next temperature."""
        job.tokens, job.logprobs = [], []
        if self._is_short(job):
            job.whole = True
        else:
            job.attempt += 1

    def _judge(self, job: Job, cache: DecoderCache, row: int) -> Decoded | None:
        """The result of a row, or None if it should be decoded again.

        Whisper repeats itself more readily in a short window, so what is doubtful there is heard in a full one.
        """
        options = job.options
        complete = job.tokens[-1] == self.vocabulary.end
        tokens = job.tokens[:-1] if complete else job.tokens
        avg_logprob = sum(job.logprobs) / len(job.logprobs)
        ratio = compression_ratio(self.vocabulary.decode(tokens))
        doubtful = avg_logprob < options.logprob_threshold
        silent = doubtful and job.no_speech_prob > options.no_speech_threshold
        repetitive = ratio > options.compression_ratio_threshold
        may_warm = not silent and job.attempt + 1 < len(options.temperatures)
        if (doubtful or repetitive) and (may_warm or self._is_short(job)):
            return None
        if silent:
            tokens = []
        return Decoded(
            tokens=tuple(tokens),
            logprobs=tuple(job.logprobs[: len(tokens)]),
            starts=self._token_starts(job, cache, row, len(tokens)) if options.word_timestamps and tokens else (),
            temperature=job.temperature,
            avg_logprob=avg_logprob,
            compression_ratio=ratio,
            no_speech_prob=job.no_speech_prob,
            complete=complete,
        )

    def _token_starts(self, job: Job, cache: DecoderCache, row: int, tokens: int) -> tuple[float, ...]:
        """When each of the first `tokens` tokens and the one after them begin, in seconds from the window's start."""
        first = len(job.prompt) - 1  # the query at a position is the one that wrote the token after it
        queries = cache.alignment_queries[row, first : first + tokens + 1]
        positions = max(1, -(-len(job.waveform) // (HOP_SAMPLES * FRAMES_PER_POSITION)))
        heads = self._decoder.alignment_heads
        heard = [cache.cross_keys[layer].read(row, head, cache.heard[row], positions) for layer, head in heads]
        begin = self.vocabulary.timestamp_begin
        written = [token - begin if token >= begin else None for token in job.tokens[:tokens]]
        similarity = within_passages(
            attention_similarity(queries, torch.stack(heard)), [*written, None], _TIMESTAMP_SLACK
        )
        starts = token_starts(similarity)
        return tuple((starts * POSITION_S).tolist())

    def _release(self, row: int) -> None:
        """Free a row: the last row takes its place."""
        last = len(self._active) - 1
        if row != last:
            self._cache.move_row(last, row, self._active[last].next_position)
            if self._drafter is not None:
                self._drafter.move(last, row)
        self._active[row] = self._active[last]
        self._active.pop()


def _pass_row(job: Job, draft: Sequence[int]) -> PassRow:
    return PassRow(job.tokens, job.last_token, job.next_position - 1, draft, job.options.timestamps)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compression_ratio(text: str) -> float:
    """Length of the text's UTF-8 bytes over their zlib-compressed length: how much it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _equal_runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Start and stop of each run of equal values.

    >>> _equal_runs([3, 3, 5])
    [(0, 2), (2, 3)]
    """
    edges = [index for index in range(1, len(values)) if values[index] != values[index - 1]]
    return list(zip([0, *edges], [*edges, len(values)], strict=True))
