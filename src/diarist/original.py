"""The contract of the service that diarist takes the place of: its `parameters` and its answer.

Both front ends that speak it, the HTTP server and the Inference Endpoints handler, speak it through this module, so
they cannot come to differ. The names `chunks`, `timestamp` and `sampling_rate` are that service's own; inside diarist
they are segments, times and sample rates.

>>> config = parse({"num_speakers": "2", "temprature": 0})
>>> config.num_speakers, config.unknown
(2, ("'temprature'",))
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from diarist.attribution import UNKNOWN_SPEAKER
from diarist.errors import OptionError
from diarist.timeline import Word, join_words
from diarist.transcript import Transcript, sentences

DEFAULT_BATCH_SIZE = 24
"""The original's. Here the engine forms batches across requests, so the number is checked and otherwise not used."""
MAX_SPEAKERS = 64
"""As in the pipeline, which cannot be imported without torch."""
_SHOWN_CHARACTERS = 60
_SHOWN_NAMES = 8


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a whole number is wanted, not a truth value")  # noqa: TRY004 (pydantic wants this one)
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
SpeakerCount = Annotated[Whole, Field(ge=1, le=MAX_SPEAKERS)] | None
Language = Annotated[str, Field(max_length=40)] | None
Prompt = Annotated[str, Field(max_length=10_000)] | None
Task = Literal["transcribe", "translate"]


class _Lenient(BaseModel):
    """Values may be strings ("24", "true"), null and blank text count as not sent, and unknown names are kept to be warned about."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_not_sent(cls, data: Any) -> Any:
        return _without_nothing(data) if isinstance(data, Mapping) else data


class GenerationParameters(_Lenient):
    """What the hub's client calls `generation_parameters`; what of it means something here. It wins over what is outside."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """As outside."""
    num_beams: Whole | None = Field(default=None, ge=1, le=16)
    """As `beam_size` outside."""
    language: Language = None
    """As outside."""
    task: Task | None = None
    """As outside."""


class InferenceConfig(_Lenient):
    """The `parameters` of one request."""

    task: Task = "transcribe"
    """Write what is said, or its English translation."""
    assisted: bool | Literal["auto"] = False
    """Decode with the assistant model, which must have been loaded; "auto", and unset: where one is and that is faster."""
    batch_size: Whole = Field(
        default_factory=lambda sent: 1 if sent.get("assisted") is True else DEFAULT_BATCH_SIZE, ge=1, le=256
    )
    """Windows decoded together: 24, or 1 when `assisted`. Checked for old clients' sake; the engine makes its own."""
    chunk_length_s: Whole = Field(default=30, ge=1, le=30)
    """Accepted for old clients' sake: windows are cut at pauses."""
    sampling_rate: Whole = Field(default=16_000, ge=8_000, le=192_000)
    """In Hz. Accepted for old clients' sake: a recording knows its own, and no time depends on this."""
    language: Language = None
    """ISO code or English name; unset: detected."""
    min_speakers: SpeakerCount = None
    """At least so many people speak."""
    max_speakers: SpeakerCount = None
    """At most so many people speak."""
    num_speakers: SpeakerCount = None
    """So many people speak."""
    return_timestamps: bool | Literal["word"] | None = None
    """Of the hub's client; "word": the chunks of the answer are words. Times are given in any case."""
    diarize: bool | None = None
    """Whether to tell speakers apart; unset: if a diarization model is loaded."""
    initial_prompt: Prompt = None
    """Text before the recording: names, spelling, style."""
    hotwords: Prompt = None
    """Words to favour."""
    word_timestamps: bool = True
    """Exact times of words; false: spread over their segment."""
    beam_size: Whole = Field(default=1, ge=1, le=16)
    """Hypotheses kept while decoding; 1 is greedy."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; unset: 0, and higher ones where a text fails its checks."""
    generation_parameters: GenerationParameters = Field(
        default_factory=lambda: GenerationParameters()  # noqa: PLW0108 (mypy: the class itself is no such callable)
    )
    """How to decode; `generate_kwargs` is another name for it."""

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "generate_kwargs" not in data:
            return data
        named = {name: value for name, value in data.items() if name != "generate_kwargs"}
        return {"generation_parameters": data["generate_kwargs"], **_without_nothing(named)}

    @field_validator("batch_size")
    @classmethod
    def _one_when_assisted(cls, size: int, info: ValidationInfo) -> int:
        if size > 1 and info.data.get("assisted") is True:
            raise ValueError("must be 1 when assisted generation is on")
        return size

    @field_validator("max_speakers")
    @classmethod
    def _not_below_the_least(cls, most: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min_speakers")
        if most is not None and least is not None and most < least:
            raise ValueError(f"is less than min_speakers, {least}")
        return most

    @field_validator("num_speakers")
    @classmethod
    def _within_the_bounds(cls, number: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min_speakers") or 1
        most = info.data.get("max_speakers") or MAX_SPEAKERS
        if number is not None and not least <= number <= most:
            raise ValueError(f"is outside min_speakers {least} to max_speakers {most}")
        return number

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names that were sent and mean nothing, quoted and cut so that a log line stays one."""
        inner = (f"generation_parameters.{name}" for name in self.generation_parameters.model_extra or ())
        return tuple(_shown(name) for name in (*(self.model_extra or ()), *inner))

    @property
    def warnings(self) -> list[str]:
        """What the caller should know about these parameters."""
        if not self.unknown:
            return []
        more = f" and {len(self.unknown) - _SHOWN_NAMES} more" if len(self.unknown) > _SHOWN_NAMES else ""
        return [f"unknown parameters were ignored: {', '.join(self.unknown[:_SHOWN_NAMES])}{more}"]

    def options(self) -> dict[str, Any]:
        """What was asked, as keyword arguments of calling a `Pipeline`."""
        inner = self.generation_parameters
        asked = {"assisted": self.assisted} if "assisted" in self.model_fields_set else {}
        return {
            **asked,
            "task": inner.task or self.task,
            "language": inner.language or self.language,
            "num_speakers": self.num_speakers,
            "min_speakers": self.min_speakers,
            "max_speakers": self.max_speakers,
            "diarize": self.diarize,
            "initial_prompt": self.initial_prompt,
            "hotwords": self.hotwords,
            "word_timestamps": self.word_timestamps,
            "beam_size": inner.num_beams or self.beam_size,
            "temperature": self.temperature if inner.temperature is None else inner.temperature,
        }

    def check(self, *, assists: bool) -> None:
        """Whether what is loaded can do this.

        Args:
            assists: Whether an assistant model is loaded.

        Raises:
            OptionError: Assisted generation is asked for without an assistant model.
        """
        if self.assisted is True and not assists:
            raise OptionError("assisted", "assisted generation is on but no assistant model was provided")


def parse(parameters: object) -> InferenceConfig:
    """The parameters of a request, from decoded JSON; null is the same as `{}`.

    Raises:
        OptionError: It is no object, or a value is out of bounds; the message names every such field.
    """
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        raise OptionError("parameters", f"must be an object, not {_shown(parameters)}")
    try:
        return InferenceConfig.model_validate(parameters)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors(include_url=False, include_context=False)]
        others = [f"{field}: {message}" for field, message in faults[1:_SHOWN_NAMES]]
        raise OptionError(faults[0][0], "; ".join([faults[0][1], *others])) from error


def read(text: str | bytes) -> object:
    """The JSON of a `parameters` text part; an empty one is the same as none.

    Raises:
        ValueError: It is not JSON, which knows neither NaN nor infinity.
    """
    if not text.strip():
        return {}
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_nothing(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None and not _is_blank(value)}


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _fault(fault: Any) -> tuple[str, str]:
    """Field and message of one validation error.

    Of a union such as `bool or "word"` every member complains; the field is where it stands, the member is left out.
    """
    names = [str(part) for part in fault["loc"]]
    nested = names[:1] == ["generation_parameters"]
    field = ".".join(names[: 2 if nested else 1])
    return field, f"{_shown(fault['input'])} is refused: {fault['msg'].removeprefix('Value error, ')}"


def _shown(value: object) -> str:
    """A value from outside in a message: ASCII, quoted if a text, and not too long."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def answer(transcript: Transcript, config: InferenceConfig) -> dict[str, Any]:
    """A transcript as the original answered, and with what it did not know.

    `speakers`, `chunks` and `text` are the original's keys. Texts in the two lists keep their leading space, so that
    joining those of either gives `text`. `speakers` is empty when there was no diarization; when it ran and heard
    nobody, its text stands under `UNKNOWN`. All values are plain, and all numbers finite.

    Args:
        transcript: What was found.
        config: What was asked for.
    """
    chunks = sentences(transcript) if config.return_timestamps != "word" else ((word,) for word in transcript.words)
    words = [_word(word) for word in transcript.words]
    return {
        "speakers": [
            {"speaker": utterance.speaker or UNKNOWN_SPEAKER, **_passage(utterance.words)}
            for utterance in transcript.utterances
            if _diarized(transcript)
        ],
        "chunks": [_passage(chunk) for chunk in chunks],
        "text": transcript.text,
        "language": transcript.language,
        "duration": transcript.duration,
        "utterances": [
            {"speaker": part.speaker, "start": part.start, "end": part.end, "text": part.text}
            for part in transcript.utterances
        ],
        "words": words,
        "turns": [{"speaker": turn.speaker, "start": turn.start, "end": turn.end} for turn in transcript.turns],
        "timings": dict(transcript.timings),
        "assistance": transcript.assistance,
        "warnings": [*transcript.warnings, *config.warnings],
    }


def _diarized(transcript: Transcript) -> bool:
    return bool(transcript.speakers) or transcript.models.get("diarization") is not None


def leading(words: Sequence[Word]) -> str:
    """The text of words as it stands in the running text: with the space before them, if there is one."""
    return ("" if words[0].joined else " ") + join_words(words)


def _passage(words: Sequence[Word]) -> dict[str, Any]:
    """Words as the original wrote a stretch of text: with the space before it, and a pair of times in seconds."""
    return {"text": leading(words), "timestamp": [words[0].start, words[-1].end]}


def _word(word: Word) -> dict[str, Any]:
    return {
        "text": word.text,
        "start": word.start,
        "end": word.end,
        "probability": word.probability,
        "speaker": word.speaker,
    }
