"""What models are called in front of clients: never by their path."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

ALIASES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-4o-transcribe-diarize",
)
"""Names that OpenAI's clients send; all of them mean the model that is loaded."""


def shown(name: str) -> str:
    """A model's name, or the last part of its path.

    >>> shown("openai/whisper-base"), shown("/repository/whisper")
    ('openai/whisper-base', 'whisper')
    """
    return PurePath(name).name if name.startswith((".", "/", "~")) else name


def models_shown(models: Mapping[str, Any]) -> dict[str, Any]:
    """The models of an engine, with names instead of paths."""
    return {key: _shown_within(value) for key, value in models.items()}


def _shown_within(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shown(str(part)) if key == "name" and part else _shown_within(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shown_within(part) for part in value]
    return value


def loaded(models: Mapping[str, Any]) -> str:
    """The name of the recognition model; empty while none is loaded."""
    asr = models.get("asr")
    return shown(str(asr["name"])) if isinstance(asr, dict) and asr.get("name") else ""
