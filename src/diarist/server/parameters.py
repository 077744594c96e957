"""What clients may ask for, in their words: the original's parameters (`diarist.original`) and OpenAI's forms.

Both become the engine's `Request`. Values may come as text (`"24"`, `"true"`): forms have nothing else, and clients of
the original send them so in JSON too. Bounds are checked here and refused with the field's name.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from diarist.asr.options import DecodingOptions
from diarist.engine.messages import EngineInfo
from diarist.errors import OptionError
from diarist.original import InferenceConfig
from diarist.request import MAX_SPEAKERS, Request, SpeakerHints
from diarist.server.uploads import parse_object

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"]
STREAMED_FORMATS = ("json", "text", "diarized_json")
MAX_KNOWN_SPEAKERS = 4
_LONGEST_PROMPT = 10_000  # characters; the model reads the last 224 tokens

_Model = TypeVar("_Model", bound=BaseModel)


def _whole(value: object) -> object:
    """Truth values are no numbers, although Python counts them among these."""
    if isinstance(value, bool):
        raise ValueError("a whole number is wanted, not a truth value")  # noqa: TRY004 (pydantic wants this one)
    return value


def _blank_is_absent(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


Int = Annotated[int, BeforeValidator(_whole)]
_Blank = BeforeValidator(_blank_is_absent)
Speakers = Annotated[Annotated[Int, Field(ge=1, le=MAX_SPEAKERS)] | None, _Blank]
Text = Annotated[Annotated[str, Field(max_length=_LONGEST_PROMPT)] | None, _Blank]
Temperature = Annotated[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None, _Blank]
Language = Annotated[Annotated[str, Field(max_length=40)] | None, _Blank]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    language: Language = Field(None, description="ISO 639-1 code or English name; absent: detected.")
    num_speakers: Speakers = Field(None, description="How many people speak, if known.")
    min_speakers: Speakers = Field(None, description="At least so many people speak.")
    max_speakers: Speakers = Field(None, description="At most so many people speak.")
    diarize: bool | None = Field(None, description="Whether to tell speakers apart.")
    word_timestamps: bool = Field(True, description="Exact times of words; false: spread over their segment.")
    beam_size: Int = Field(1, ge=1, le=16, description="Hypotheses to keep: more is slower.")
    assisted: bool | Literal["auto"] = Field(
        "auto", description="Let the assistant model draft; auto: where one is loaded and that is faster."
    )

    def hints(self) -> SpeakerHints:
        return SpeakerHints(self.num_speakers, self.min_speakers, self.max_speakers)


def original_request(config: InferenceConfig, info: EngineInfo) -> Request:
    """What the engine is asked for by the original's parameters.

    Raises:
        OptionError: The values contradict each other, or the loaded models cannot do it.
    """
    config.check(assists=info.assists)
    options = config.options()
    hints = SpeakerHints(*(options.pop(name) for name in ("num_speakers", "min_speakers", "max_speakers")))
    diarize = _diarizes(options.pop("diarize"), info, default=info.diarizes)
    return Request(_decoding(info, **options), hints, diarize=diarize)


class ChunkingStrategy(BaseModel):
    """OpenAI's server-side cutting. Checked and accepted: recordings are always cut at pauses here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["server_vad", "auto"]
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    prefix_padding_ms: Annotated[Int, Field(ge=0, le=60_000)] | None = None
    silence_duration_ms: Annotated[Int, Field(ge=0, le=60_000)] | None = None


class TranslationForm(_Parameters):
    """OpenAI's translation request, without its file."""

    model: str = Field(max_length=200, description="Any name: the model that is loaded is used.")
    prompt: Text = Field(None, description="Text before the recording: names, style.")
    response_format: ResponseFormat = Field("json", description="Form of the answer.")
    temperature: Temperature = Field(None, description="0 or absent: 0, then higher where that fails.")

    @property
    def diarized(self) -> bool:
        """Whether speakers are wanted."""
        return False

    def _wanted(self, info: EngineInfo, task: str, **more: Any) -> Request:
        decoding = _decoding(
            info,
            task=task,
            initial_prompt=self.prompt,
            word_timestamps=self.word_timestamps,
            beam_size=self.beam_size,
            assisted=self.assisted,
            temperature=self.temperature or None,
            **more,
        )
        return Request(decoding, self.hints(), diarize=_diarizes(self.diarize, info, default=self.diarized))

    def request(self, info: EngineInfo) -> Request:
        return _renamed(lambda: self._wanted(info, "translate", language=self.language))


class TranscriptionForm(TranslationForm):
    """OpenAI's transcription request, without its file."""

    languages: tuple[Annotated[str, Field(max_length=40)], ...] = Field((), max_length=100)
    keywords: tuple[Annotated[str, Field(max_length=200)], ...] = Field((), max_length=100)
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(())
    include: tuple[Literal["logprobs"], ...] = Field(())
    stream: bool | None = Field(None, description="Server-sent events instead of one answer.")
    progress: bool = Field(False, description="With stream: `diarist.progress` events among the others.")
    chunking_strategy: Literal["auto"] | ChunkingStrategy | None = None
    known_speaker_names: tuple[str, ...] = Field((), max_length=MAX_KNOWN_SPEAKERS)
    known_speaker_references: tuple[str, ...] = Field((), max_length=MAX_KNOWN_SPEAKERS)

    @property
    def diarized(self) -> bool:
        return self.response_format == "diarized_json" or bool(
            self.known_speaker_names or self.num_speakers or self.min_speakers or self.max_speakers
        )

    def request(self, info: EngineInfo) -> Request:
        """What the engine is asked for.

        Raises:
            OptionError: The values contradict each other, or the loaded models cannot do it.
        """
        _check_names(self.known_speaker_names, self.known_speaker_references)
        if self.stream and self.response_format not in STREAMED_FORMATS:
            raise OptionError("stream", f"only {', '.join(STREAMED_FORMATS)} can be streamed")
        if self.response_format == "diarized_json" and self.diarize is False:
            raise OptionError("diarize", "diarized_json needs it")
        language = self.language or (self.languages[0] if len(self.languages) == 1 else None)
        hotwords = ", ".join(self.keywords) or None
        return _renamed(lambda: self._wanted(info, "transcribe", language=language, hotwords=hotwords))


_LISTS = (
    "languages",
    "keywords",
    "timestamp_granularities",
    "include",
    "known_speaker_names",
    "known_speaker_references",
)


def transcription_form(fields: Iterable[tuple[str, str]]) -> TranscriptionForm:
    """The fields of a transcription request; lists may be sent as `name[]` or as `name`.

    Raises:
        OptionError: A field is missing, of the wrong type, or out of bounds.
    """
    values: dict[str, Any] = {}
    for name, value in fields:
        bare = name.removesuffix("[]")
        if bare in _LISTS:
            values.setdefault(bare, []).append(value)
        elif found := re.fullmatch(r"chunking_strategy\[(\w+)\]", name):
            strategy = values.get("chunking_strategy")
            values["chunking_strategy"] = {**(strategy if isinstance(strategy, dict) else {}), found[1]: value}
        elif value != "" or name == "model":
            values[bare] = value
    strategy = values.get("chunking_strategy")
    if isinstance(strategy, str) and strategy.lstrip().startswith("{"):
        values["chunking_strategy"] = parse_object(strategy, "chunking_strategy")
    return validated(TranscriptionForm, values)


def translation_form(fields: Iterable[tuple[str, str]]) -> TranslationForm:
    """The fields of a translation request.

    Raises:
        OptionError: A field is missing, of the wrong type, or out of bounds.
    """
    form = validated(TranslationForm, {name: value for name, value in fields if value != "" or name == "model"})
    if form.response_format == "diarized_json":
        raise OptionError("response_format", "'diarized_json' is not one of json, text, srt, verbose_json, vtt")
    return form


def validated(model: type[_Model], values: dict[str, Any]) -> _Model:
    """The values as a model.

    Raises:
        OptionError: Names the first field that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "parameters"
        message = "Input should be an object" if first["type"] == "model_type" else str(first["msg"])
        raise OptionError(name, message) from None


def _check_names(names: tuple[str, ...], references: tuple[str, ...]) -> None:
    if len(names) != len(references):
        message = f"{len(names)} names for {len(references)} references; each name needs one"
        raise OptionError("known_speaker_references", message)
    if len(set(names)) != len(names):
        raise OptionError("known_speaker_names", "a name stands there twice")
    if any(not 1 <= len(name.strip()) <= 64 or not name.isprintable() for name in names):
        raise OptionError("known_speaker_names", "names have 1 to 64 printable characters")


def _decoding(info: EngineInfo, *, language: str | None, temperature: float | None, **options: Any) -> DecodingOptions:
    if language == "auto":
        language = None
    if temperature is not None:
        options["temperatures"] = (temperature,)
    decoding = DecodingOptions(language=language, **options)
    if decoding.assisted is True and not info.assists:
        raise OptionError("assisted", "no assistant model is loaded")
    if info.languages and decoding.language is not None and decoding.language not in info.languages:
        raise OptionError("language", f"the loaded model does not know {decoding.language!r}")
    if info.models and not info.multilingual:
        if decoding.task == "translate":
            raise OptionError("task", "the loaded model knows English only and cannot translate")
        if decoding.language not in (None, "en"):
            raise OptionError("language", "the loaded model knows English only")
    return decoding


def _diarizes(asked: bool | None, info: EngineInfo, *, default: bool) -> bool:
    wanted = default if asked is None else asked
    if wanted and not info.diarizes and info.models:
        raise OptionError("diarize", "no diarization model is loaded, so speakers cannot be told apart")
    return wanted


_OPENAI_NAMES = {"initial_prompt": "prompt", "hotwords": "keywords"}


def _renamed(make: Any) -> Request:
    """What `make` returns; what it refuses goes by the names that OpenAI's clients use."""
    try:
        request: Request = make()
    except OptionError as error:
        raise OptionError(_OPENAI_NAMES.get(error.param, error.param), error.message) from None
    return request
