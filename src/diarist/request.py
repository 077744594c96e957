"""What is asked of the pipeline for one recording. Importing it does not load torch: a server's process has none."""

from dataclasses import dataclass, field, fields

from diarist.asr.options import DecodingOptions
from diarist.errors import OptionError

MAX_SPEAKERS = 64


@dataclass(frozen=True, slots=True)
class SpeakerHints:
    """What the caller knows about the number of speakers."""

    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None

    def __post_init__(self) -> None:
        for hint in fields(self):
            value = getattr(self, hint.name)
            if value is not None and not 1 <= value <= MAX_SPEAKERS:
                raise OptionError(hint.name, f"{value} is not between 1 and {MAX_SPEAKERS}")
        least, most = self.min_speakers or 1, self.max_speakers or MAX_SPEAKERS
        if least > most:
            raise OptionError("min_speakers", f"{least} is more than max_speakers, {most}")
        if self.num_speakers is not None and not least <= self.num_speakers <= most:
            raise OptionError(
                "num_speakers", f"{self.num_speakers} is outside min_speakers {least} to max_speakers {most}"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the pipeline for one recording."""

    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    hints: SpeakerHints = field(default_factory=SpeakerHints)
    diarize: bool = True
