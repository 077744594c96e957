"""What the command and the server share: which models, on what, kept where.

`Settings()` reads the environment once, at the top of a program; flags are given as arguments and win. Nothing else in
diarist reads these variables, except the model cache and the hub client for theirs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

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

    def pipeline_options(self) -> dict[str, Any]:
        """What these settings say of a `Pipeline`: arguments by name."""
        return {
            "asr_model": self.asr_model,
            "diarization_model": None if self.diarization_model == NO_MODEL else self.diarization_model,
            "assistant_model": self.assistant_model,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "offline": self.offline,
            "token": self.token,
            "cache_dir": self.cache_dir,
        }


class ServerSettings(Settings):
    """What `diarist serve` needs besides: where it listens, who may ask, and how much."""

    host: str = Field("127.0.0.1", validation_alias="DIARIST_HOST")
    """Address to listen on. Any but this machine's own needs an API key, or `insecure`."""
    port: int = Field(7860, ge=0, le=65_535, validation_alias="DIARIST_PORT")
    """Port to listen on; 0 takes a free one."""
    api_keys: SecretStr | None = Field(None, validation_alias="DIARIST_API_KEYS")
    """Keys that clients must send as `Authorization: Bearer`, parted by commas; unset: anyone may ask."""
    api_keys_file: Path | None = Field(None, validation_alias="DIARIST_API_KEYS_FILE")
    """File with one more key on each line; empty lines and those that begin with # are left out."""
    insecure: bool = Field(False, validation_alias="DIARIST_INSECURE")
    """Listen on a public address without a key, because something in front asks for one."""
    cors_origins: str = Field("", validation_alias="DIARIST_CORS_ORIGINS")
    """Origins of web pages that may call, parted by commas; `*` is any. Empty: none."""
    max_body_bytes: int = Field(512_000_000, ge=1024, validation_alias="DIARIST_MAX_BODY_BYTES")
    """Longest request body, in bytes: recording, references and all else together."""
    max_form_files: int = Field(2, ge=1, le=16, validation_alias="DIARIST_MAX_FORM_FILES")
    """Most files in one form; one is used."""
    max_form_fields: int = Field(50, ge=1, le=1000, validation_alias="DIARIST_MAX_FORM_FIELDS")
    """Most text fields in one form."""
    max_text_bytes: int = Field(4_000_000, ge=1024, validation_alias="DIARIST_MAX_TEXT_BYTES")
    """Longest text field of a form, in bytes; a voice reference of ten seconds in stereo is 2.4 MB."""
    max_audio_s: float = Field(4 * 3600.0, gt=0, validation_alias="DIARIST_MAX_AUDIO_S")
    """Longest recording, in seconds of decoded sound."""
    max_native_bytes: int = Field(16 << 30, ge=1 << 20, validation_alias="DIARIST_MAX_NATIVE_BYTES")
    """Most bytes that one recording may decode to before conversion to 16 kHz; stops decompression bombs."""
    max_running: int = Field(64, ge=1, le=4096, validation_alias="DIARIST_MAX_RUNNING")
    """Requests under way at once; their windows share batches."""
    max_waiting: int = Field(256, ge=0, le=65_536, validation_alias="DIARIST_MAX_WAITING")
    """Requests that may wait; one more is refused with 429. The last eighth is kept from any key that fills the rest."""
    max_waiting_s: float = Field(4 * 3600.0, gt=0, validation_alias="DIARIST_MAX_WAITING_S")
    """Seconds of audio that may wait, by the recordings' headers."""
    deadline_base_s: float = Field(60.0, gt=0, validation_alias="DIARIST_DEADLINE_BASE_S")
    """Seconds that any request may take before it is given up with 504."""
    deadline_per_second: float | None = Field(None, ge=0, validation_alias="DIARIST_DEADLINE_PER_SECOND")
    """Further seconds for each second that the recording may last by its size; unset: 0.1 on a GPU, 3 without."""
    header_timeout_s: float = Field(10.0, gt=0, validation_alias="DIARIST_HEADER_TIMEOUT_S")
    """Seconds in which the head of a request must have come."""
    min_upload_rate: int = Field(8192, ge=0, validation_alias="DIARIST_MIN_UPLOAD_RATE")
    """Bytes a second that a body must come with on average, after ten seconds of grace."""
    write_timeout_s: float = Field(30.0, gt=0, validation_alias="DIARIST_WRITE_TIMEOUT_S")
    """Seconds after which a client that takes nothing of its answer is cut off."""
    keep_alive_s: float = Field(20.0, gt=0, validation_alias="DIARIST_KEEP_ALIVE_S")
    """Seconds that an idle connection is kept."""
    graceful_stop_s: float = Field(30.0, ge=2, validation_alias="DIARIST_GRACEFUL_STOP_S")
    """Seconds from SIGTERM to the exit at the latest; requests under way may end in them."""
    spool_dir: Path | None = Field(None, validation_alias="DIARIST_SPOOL_DIR")
    """Folder for uploads while they are worked on; unset: one in the system's folder for temporary files."""
    min_free_bytes: int = Field(256_000_000, ge=0, validation_alias="DIARIST_MIN_FREE_BYTES")
    """Free bytes that the spool's disk must have; below that nothing is admitted and `/readyz` says so."""
    log_format: Literal["json", "console"] = Field("json", validation_alias="DIARIST_LOG_FORMAT")
    """How the log is written to standard error: one JSON object a line, or for people."""
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", validation_alias="DIARIST_LOG_LEVEL")
    """Least serious messages that are logged."""
    otel: bool = Field(False, validation_alias="DIARIST_OTEL")
    """Send OpenTelemetry traces, as the `OTEL_*` variables say; needs the extra `otel`."""


_AnySettings = TypeVar("_AnySettings", bound=Settings)


def load(**flags: object) -> Settings:
    """The environment, with what was given on the command line in its place.

    Args:
        flags: Values by field name; None where a flag was not given.

    Raises:
        OptionError: A value is of the wrong type or out of bounds; names the field.
    """
    return _load(Settings, flags)


def load_server(**flags: object) -> ServerSettings:
    """The same for `diarist serve`.

    Where the environment names `ASR_MODEL` but not `DIARIZATION_MODEL`, as deployments of the original do that want no
    speakers, diarization is left out; everybody else gets it unless they say `none`.

    Raises:
        OptionError: A value is of the wrong type or out of bounds; names the field.
    """
    settings = _load(ServerSettings, flags)
    given = {name for name, value in flags.items() if value is not None}
    from_environment = settings.model_fields_set - given
    if "asr_model" in from_environment and "diarization_model" not in settings.model_fields_set:
        return settings.model_copy(update={"diarization_model": NO_MODEL})
    return settings


def _load(kind: type[_AnySettings], flags: Mapping[str, object]) -> _AnySettings:
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise OptionError(str(first["loc"][0]), f"{first['input']!r} is refused: {first['msg']}") from error
