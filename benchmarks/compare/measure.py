"""Measuring: every peer is kept warm, and they are asked in turns, so that a disturbance hits all alike."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compare.children import Child
from compare.corpus import Recording
from compare.peer import Peer, PeerError
from compare.protocol import WORKS, Task, Work
from compare.results import PeerResults, Results, Run, Score
from diarist.timeline import Segment, Turn
from recordings import joined
from scoring import diarization_errors, speaker_word_errors, word_errors

_START_LIMIT_S = 300.0
_CLIP_LIMIT_S = 120.0

Say = Callable[[str], None]
Step = Callable[[], None]
"""Called whenever a peer has answered, or will not any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    starts: int
    """Repetitions of the start of each process, after one that is not counted."""
    clips: int
    """Repetitions of the short clip, after one that is not counted."""
    limit_s: float
    """Of each peer's work in the rounds: one that would not end a further round in time is asked no more."""


@dataclass(slots=True)
class Contender:
    """A peer that is ready to be started, and what is known of it so far."""

    peer: Peer
    task: Task
    python: Path
    log: Path
    found: PeerResults
    child: Child | None = None
    round_s: list[float] = field(default_factory=list)

    def start(self, works: tuple[Work, ...]) -> Child:
        return Child(self.peer, replace(self.task, works=works), self.python, self.log)

    def fail(self, reason: str, say: Say) -> None:
        """It takes no further part."""
        self.found.failure = reason
        say(f"{self.peer.name} {reason}")
        if self.child is not None:
            self.child.close()
            self.child = None

    @property
    def active(self) -> bool:
        return self.found.failure is None


@dataclass(frozen=True, slots=True)
class Question:
    """One recording to be heard by one peer."""

    contender: int
    work: Work
    recording: int


def questions(works: Sequence[tuple[Work, ...]], recordings: int, number: int) -> Iterator[Question]:
    """A round: for each recording and kind of work all peers in turn, another one first every time.

    >>> [q.contender for q in questions([("recognition",), ("recognition", "whole")], 2, 0)]
    [0, 1, 1, 1, 0, 1]
    """
    for recording in range(recordings):
        for work in WORKS:
            able = [place for place, each in enumerate(works) if work in each]
            first = (number + recording) % len(able) if able else 0
            for contender in able[first:] + able[:first]:
                yield Question(contender, work, recording)


def measure(
    results: Results,
    contenders: Sequence[Contender],
    recordings: Sequence[Recording],
    clip: Path,
    plan: Plan,
    *,
    say: Say,
    step: Step,
    save: Callable[[Results], None],
) -> None:
    """Fill in the results, part by part; they are saved after each round."""
    measure_starts(contenders, clip, plan, say=say, step=step)
    with ExitStack() as stack:
        say("loading all")
        for contender in contenders:
            if contender.active:
                _warm(contender, clip, stack, say)
            step()
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            measure_round(contenders, recordings, number, plan, say=say, step=step)
            save(results)
        say("short clip")
        measure_clips(contenders, clip, plan, say=say, step=step)
    save(results)


def measure_starts(contenders: Sequence[Contender], clip: Path, plan: Plan, *, say: Say, step: Step) -> None:
    """Time processes from their start to the text of the clip. The first start only fills the page cache."""
    say("starting processes")
    for repetition in range(plan.starts + 1):
        for contender in contenders:
            if contender.peer.recognizes and contender.active and plan.starts:
                try:
                    seconds = _start(contender, clip)
                    if repetition:
                        contender.found.start_s.append(seconds)
                except PeerError as error:
                    contender.fail(str(error), say)
            step()


def _start(contender: Contender, clip: Path) -> float:
    begun = time.perf_counter()
    with contender.start(("recognition",)) as child:
        child.ready(_START_LIMIT_S)
        child.ask("recognition", clip, _CLIP_LIMIT_S)
        return time.perf_counter() - begun


def _warm(contender: Contender, clip: Path, stack: ExitStack, say: Say) -> None:
    """Load it, and let it do everything once: first calls compile and allocate."""
    try:
        contender.child = stack.enter_context(contender.start(contender.peer.works))
        contender.found.versions = dict(contender.child.ready(_START_LIMIT_S)["versions"])
        for work in contender.peer.works:
            contender.child.ask(work, clip, _CLIP_LIMIT_S)
    except PeerError as error:
        contender.fail(str(error), say)


def measure_round(
    contenders: Sequence[Contender], recordings: Sequence[Recording], number: int, plan: Plan, *, say: Say, step: Step
) -> None:
    """Every recording by every peer that has time left for a whole round; the first round's answers are scored."""
    left = [plan.limit_s - sum(contender.round_s) for contender in contenders]
    taking_part = [
        contender.active and seconds > max(contender.round_s, default=0)
        for contender, seconds in zip(contenders, left, strict=True)
    ]
    for contender in contenders:
        contender.round_s.append(0.0)
    for question in questions([contender.peer.works for contender in contenders], len(recordings), number):
        contender, recording = contenders[question.contender], recordings[question.recording]
        if taking_part[question.contender] and contender.child is not None:
            limit = left[question.contender] - contender.round_s[-1]
            try:
                answer = contender.child.ask(question.work, recording.path, limit)
            except PeerError as error:
                contender.fail(str(error), say)
            else:
                contender.round_s[-1] += answer["seconds"]
                contender.found.runs += runs(answer, question.work, recording.name, number)
                if number == 0:
                    contender.found.scores += scores(answer, question.work, recording)
                say(f"{contender.peer.name}: {question.work} of {recording.name}: {answer['seconds']:.1f} s")
        step()


def runs(answer: Mapping[str, Any], work: Work, recording: str, number: int) -> list[Run]:
    """An answer as runs: of the work, and of its parts where it has some."""
    parts: Mapping[Work, float] = answer["parts"]
    return [
        Run(work, recording, number, answer["seconds"], answer["peak_bytes"]),
        *(Run(part, recording, number, seconds, None) for part, seconds in parts.items()),
    ]


def scores(answer: Mapping[str, Any], work: Work, recording: Recording) -> list[Score]:
    """How wrong an answer is, by the measure of its work and of its parts."""
    found: list[Score] = []
    done = {work, *answer["parts"]}
    if "recognition" in done:
        errors = word_errors(recording.text, answer["text"])
        found.append(Score("WER", recording.name, errors.wrong, errors.total))
    if "diarization" in done:
        turns = [Turn(Segment(start, max(start, end)), str(speaker)) for start, end, speaker in answer["turns"]]
        errors = diarization_errors(recording.turns, turns, recording.duration)
        found.append(Score("DER", recording.name, errors.wrong, errors.total))
    if "whole" in done:
        said = joined(tuple((speaker, text) for speaker, text in answer["utterances"]))
        errors = speaker_word_errors(recording.text_by_speaker, said)
        found.append(Score("cpWER", recording.name, errors.wrong, errors.total))
    return found


def measure_clips(contenders: Sequence[Contender], clip: Path, plan: Plan, *, say: Say, step: Step) -> None:
    """Time the short clip, warm; the first repetition is not counted, for others' work lies before it."""
    for repetition in range(plan.clips + 1):
        for contender in contenders:
            if contender.peer.recognizes and contender.child is not None and plan.clips:
                try:
                    answer = contender.child.ask("recognition", clip, _CLIP_LIMIT_S)
                    if repetition:
                        contender.found.clip_s.append(answer["seconds"])
                except PeerError as error:
                    contender.fail(str(error), say)
            step()


def steps(contenders: int, works: Sequence[tuple[Work, ...]], recordings: int, plan: Plan) -> int:
    """How many answers, asked for or not, `measure` counts."""
    in_round = sum(1 for _ in questions(works, recordings, 0))
    return contenders * (plan.starts + 1 + 1 + plan.clips + 1) + plan.rounds * in_round
