"""What a caller may ask of the recognizer."""

from dataclasses import dataclass
from typing import Literal

from diarist.asr.languages import language_code
from diarist.errors import OptionError

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How windows are decoded. Thresholds and their defaults are those of openai-whisper's `transcribe`."""

    language: str | None = None
    """ISO code or English name; None detects it once for the recording."""
    task: Task = "transcribe"
    initial_prompt: str | None = None
    """Text that precedes the recording: names, spelling, style. Given to every window."""
    hotwords: str | None = None
    """Words to favour; given to every window before the initial prompt."""
    timestamps: bool = True
    """Have the model write timestamps. Without them its skipped stretches cannot be found and decoded again."""
    word_timestamps: bool = True
    """Word times from cross-attention; otherwise words are spread evenly over their segment."""
    beam_size: int = 1
    """Hypotheses kept; 1 is greedy decoding."""
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried in order until the text passes the thresholds below."""
    compression_ratio_threshold: float = 2.4
    """Text that compresses better repeats itself: try the next temperature."""
    logprob_threshold: float = -1.0
    """Mean log-probability below which the text is not trusted: try the next temperature."""
    no_speech_threshold: float = 0.6
    """Probability of no speech above which an untrusted text is taken for silence."""
    assisted: bool | Literal["auto"] = "auto"
    """Let the assistant draft: always, never, or where it is expected to be faster. The text is the same."""
    max_tokens: int = 224
    """Tokens written per window at most: half the decoder's positions."""

    def __post_init__(self) -> None:
        if self.language is not None:
            code = language_code(self.language)
            if code is None:
                raise OptionError(
                    "language", f"{self.language!r} is not a language that Whisper knows (try en, de, zh)"
                )
            object.__setattr__(self, "language", code)
        if self.task not in ("transcribe", "translate"):
            raise OptionError("task", f"{self.task!r} is neither 'transcribe' nor 'translate'")
        if self.assisted not in (True, False, "auto"):
            raise OptionError("assisted", f"{self.assisted!r} is not one of true, false, auto")
        if not 1 <= self.beam_size <= 16:
            raise OptionError("beam_size", f"{self.beam_size} is not between 1 and 16")
        if not self.temperatures or not all(0 <= t <= 2 for t in self.temperatures):
            raise OptionError("temperature", f"{self.temperatures} must hold values between 0 and 2")
