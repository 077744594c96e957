"""What the command and the server share: which models, on what, kept where.

`Settings()` reads the environment once, at the top of a program; flags are given as arguments and win. Nothing else in
diarist reads these variables, except the model cache and the hub client for theirs.
"""

from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from diarist.errors import OptionError

NO_MODEL = "none"
"""Value of `diarization_model` that leaves diarization out."""


class Settings(BaseSettings):
    """Models and machine. An empty variable counts as one that is not set."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True,  # templates for environments ship empty values
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    asr_model: str = Field("base", validation_alias="ASR_MODEL")
    """Recognition model: a name of the catalogue, a hub id or a path. `base` is the best that keeps ahead of any
    recording on two processor cores."""
    diarization_model: str = Field("default", validation_alias="DIARIZATION_MODEL")
    """Diarization pipeline: a name of the catalogue or a path; `none` leaves it out. `default` needs no account."""
    assistant_model: str | None = Field(None, validation_alias="ASSISTANT_MODEL")
    """Small recognition model that drafts for the main one: a name, hub id or path, or `ngram` to draft from what was
    said before; unset: no drafting. The text is the same with and without."""
    hf_token: SecretStr | None = Field(None, validation_alias="HF_TOKEN")
    """Token for models on the hub that ask for an account; unset: the stored login, if there is one."""
    device: str = Field("auto", validation_alias="DIARIST_DEVICE")
    """Where the networks run: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one."""
    dtype: str = Field("auto", validation_alias="DIARIST_DTYPE")
    """Precision: `float32`, `bfloat16`, `float16`, `int8`; `auto` asks the hardware which is fast and loses nothing."""
    threads: int | None = Field(None, ge=1, le=1024, validation_alias="DIARIST_THREADS")
    """Processor threads; unset: one for each core that this process may use."""
    batch_size: int | None = Field(None, ge=1, le=256, validation_alias="DIARIST_BATCH_SIZE")
    """Windows of 30 s decoded together; unset: what suits the device. More needs more memory."""
    cache_dir: Path | None = Field(None, validation_alias="DIARIST_CACHE")
    """Folder for fetched models; unset: `diarist` in the user's cache folder (XDG)."""
    offline: bool = Field(False, validation_alias=AliasChoices("DIARIST_OFFLINE", "HF_HUB_OFFLINE"))
    """Open no connection: only models that are on this machine."""

    @property
    def token(self) -> str | None:
        """`hf_token` in the clear, for the hub client."""
        return self.hf_token.get_secret_value() if self.hf_token else None


def load(**flags: object) -> Settings:
    """The environment, with what was given on the command line in its place.

    Args:
        flags: Values by field name; None where a flag was not given.

    Raises:
        OptionError: A value is of the wrong type or out of bounds; names the field.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise OptionError(str(first["loc"][0]), f"{first['input']!r} is refused: {first['msg']}") from error
