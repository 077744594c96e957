"""Every error that diarist raises on purpose.

    DiaristError
    ├── OptionError (ValueError)            an option or parameter is out of its bounds
    ├── AudioError
    │   ├── AudioNotFoundError (FileNotFoundError)
    │   ├── AudioEmptyError                 no bytes at all
    │   ├── AudioFormatError                not audio, or a container or codec outside the allowed list
    │   ├── AudioCorruptError               an allowed container that cannot be decoded
    │   ├── AudioTooLargeError              past the cap on duration, size or native bytes
    │   └── AudioTimeoutError (TimeoutError) the decoder did not finish before its deadline
    ├── ModelError
    │   ├── ModelNotFoundError (FileNotFoundError)  an unknown name, or every source failed
    │   ├── ModelIntegrityError             the bytes do not have the expected sha256
    │   └── ModelFormatError                a weight file that cannot be read, or must not be
    ├── ComputeError (RuntimeError)         the requested device or dtype is not available
    │   └── OutOfMemoryError (MemoryError)
    ├── TranscriptError (ValueError)        a transcript that breaks its own rules, or JSON that is none
    ├── CancelledError                      the caller asked to stop
    ├── DeployError                         the platform that runs endpoints refused, failed or was not reached
    └── EngineError
        ├── QueueFullError                  as much is waiting as may wait
        ├── NotReadyError                   models are loading, or the engine is stopping
        ├── WorkerLostError                 the worker died or hung under the request: try again
        ├── PoisonError                     the same recording has killed the worker twice
        └── DeadlineError (TimeoutError)    the request's deadline passed

Each class carries a stable `code`, which outlives rewording of messages: scripts, HTTP bodies and logs use it.
Messages name the input and the cure and are fit to be shown to the person who made the call.
"""

from typing import ClassVar


class DiaristError(Exception):
    """Base of all errors raised on purpose by diarist."""

    code: ClassVar[str] = "error"


class OptionError(DiaristError, ValueError):
    """An option is unknown or out of bounds.

    Args:
        param: Name of the option as the caller wrote it.
        message: What is wrong with it and what is accepted.
    """

    code = "invalid_option"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.message = message

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, str]]:
        return type(self), (self.param, self.message)  # crosses the worker's pipe whole


class AudioError(DiaristError):
    """A recording cannot be turned into samples."""

    code = "audio_error"


class AudioNotFoundError(AudioError, FileNotFoundError):
    """The path names nothing readable."""

    code = "audio_not_found"


class AudioEmptyError(AudioError):
    """The input holds no bytes."""

    code = "audio_empty"


class AudioFormatError(AudioError):
    """The input is not audio, or uses a container or codec that is not allowed."""

    code = "audio_format"


class AudioCorruptError(AudioError):
    """The container is a known one but nothing in it can be decoded."""

    code = "audio_corrupt"


class AudioTooLargeError(AudioError):
    """A cap on duration, size or decoded bytes was reached."""

    code = "audio_too_large"


class AudioTimeoutError(AudioError, TimeoutError):
    """The decoder was stopped at its deadline."""

    code = "audio_timeout"


class ModelError(DiaristError):
    """A model cannot be had or used."""

    code = "model_error"


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No source has the model; the message lists what was tried."""

    code = "model_not_found"


class ModelIntegrityError(ModelError):
    """A file does not have the sha256 that the catalogue pins."""

    code = "model_integrity"


class ModelFormatError(ModelError):
    """A weight file cannot be read, or holds something that is refused (pickled code, object arrays)."""

    code = "model_format"


class ComputeError(DiaristError, RuntimeError):
    """The requested device or dtype is not available here."""

    code = "compute_unavailable"


class OutOfMemoryError(ComputeError, MemoryError):
    """A batch of one does not fit in memory."""

    code = "out_of_memory"


class TranscriptError(DiaristError, ValueError):
    """A transcript breaks its own rules, or JSON does not hold one."""

    code = "transcript_invalid"


class CancelledError(DiaristError):
    """The caller asked to stop before the work was done."""

    code = "cancelled"


class DeployError(DiaristError):
    """The platform that runs endpoints refused, failed or was not reached."""

    code = "deploy_failed"


class EngineError(DiaristError):
    """The engine could not do a request, whatever the request was."""

    code = "engine_error"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When trying again makes sense, in seconds from now; None if it does not."""

    def __reduce__(self) -> tuple[type["EngineError"], tuple[str, float | None]]:
        return type(self), (str(self), self.retry_after_s)


class QueueFullError(EngineError):
    """As many requests, or as much audio, are waiting as may wait."""

    code = "queue_full"


class NotReadyError(EngineError):
    """Models are being loaded, or the engine is stopping."""

    code = "not_ready"


class WorkerLostError(EngineError):
    """The worker died or stopped answering while it had the request; another one is being started."""

    code = "worker_lost"


class PoisonError(EngineError):
    """The worker has died twice over the same recording, which is refused from now on."""

    code = "poison_input"


class DeadlineError(EngineError, TimeoutError):
    """The request's deadline passed before its answer."""

    code = "deadline_exceeded"
