"""The handler of a Hugging Face Inference Endpoint, and the model repository that brings it there.

The platform's own container imports `handler.py` from the model repository, makes `EndpointHandler(path)` once and
calls it for each request, one at a time. The exported `handler.py` is three lines that import this module.
Whatever the handler raises becomes status 400 with the message as its body; so messages begin with a stable code.
"""

import base64
import binascii
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diarist import __version__, original, settings
from diarist.errors import DiaristError, ModelFormatError, OptionError

if TYPE_CHECKING:
    from diarist.pipeline import Pipeline
    from diarist.settings import Settings

MAX_INPUT_BYTES = 512_000_000
"""Largest recording taken, in bytes: the server's limit on a body."""
TORCH = "torch>=2.10,<2.14"
"""What this package asks for. Named in the repository too, since the container pins an older one by name."""
WEIGHTS_FOLDER = "diarist-models"
"""Folder of the model repository that is used as the cache of models, if it is there."""

_MODEL_NAME = re.compile(r"[\w./-]{1,200}", re.ASCII)
_log = logging.getLogger(__name__)


class EndpointHandler:
    """Models loaded once, for the requests of one endpoint.

    The recognition model is that in `path` if one lies there, else `ASR_MODEL`. `DIARIZATION_MODEL` unset means that
    speakers are not told apart. The other variables are those of `Settings`.

    Args:
        path: Folder of the model repository.

    Raises:
        DiaristError: A model is missing or cannot be used; the message begins with the error's code.
    """

    default_asr_model: ClassVar[str | None] = None
    """Taken where neither the repository nor the environment has one; set by the exported `handler.py`."""

    def __init__(self, path: str = "") -> None:
        try:
            self.pipeline = _load(Path(path) if path else None, self.default_asr_model)
        except DiaristError as error:
            raise _coded(error) from error

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Args:
            data: `inputs`, a recording as bytes or as their base64 text, and `parameters`, an object or null
                (`diarist.original.InferenceConfig`).

        Returns:
            Plain values for JSON: `diarist.original.answer`.

        Raises:
            DiaristError: The message begins with the code of what went wrong.
        """
        try:
            return self._answer(data)
        except DiaristError as error:
            raise _coded(error) from error
        except Exception as error:
            _log.exception("a request failed")
            raise DiaristError(f"{DiaristError.code}: internal error; the endpoint's log has more") from error

    def _answer(self, data: Mapping[str, Any]) -> dict[str, Any]:
        from diarist.audio import DecodeLimits  # noqa: PLC0415 (numpy, and in time the decoder, are slow to import)

        config = original.parse(data.get("parameters"))
        config.check(assists=self.pipeline.models["assistant"] is not None)
        for warning in config.warnings:
            _log.warning("%s", warning)
        recording = _recording(data.get("inputs"))
        transcript = self.pipeline(recording, limits=DecodeLimits(max_input_bytes=MAX_INPUT_BYTES), **config.options())
        return original.answer(transcript, config)


def holds_weights(path: Path) -> bool:
    """Whether weights of a recognition model lie in a folder."""
    from diarist.models import layouts  # noqa: PLC0415 (only an endpoint needs it)

    try:
        layouts.at_path(path, "asr")
    except (ModelFormatError, OSError):
        return False
    return True


def _coded(error: DiaristError) -> DiaristError:
    return DiaristError(f"{error.code}: {error}")


def _recording(inputs: object) -> bytes:
    """The bytes of a recording, sent as they are or as base64 text (a data URL is one too)."""
    if isinstance(inputs, bytes | bytearray | memoryview):
        return bytes(inputs)
    if inputs is None:
        raise OptionError("inputs", "is missing: send the recording as bytes or as base64 text")
    if not isinstance(inputs, str):
        raise OptionError("inputs", f"must be bytes or base64 text, not {type(inputs).__name__}")
    encoded = inputs.partition(";base64,")[2] if inputs.startswith("data:") else inputs
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise OptionError("inputs", f"is not base64: {error}") from None


def _load(path: Path | None, default_asr_model: str | None) -> "Pipeline":
    from diarist.pipeline import Pipeline  # noqa: PLC0415 (torch is slow to import, and not needed to export)

    chosen = settings.load()
    weights = path / WEIGHTS_FOLDER if path else None
    options = {
        **chosen.pipeline_options(),
        "asr_model": _asr_model(path, chosen, default_asr_model),
        "diarization_model": _diarization_model(chosen),
    }
    if weights and weights.is_dir():
        options["cache_dir"] = weights
    return Pipeline(**options)


def _asr_model(path: Path | None, chosen: "Settings", default: str | None) -> str:
    if path and holds_weights(path):
        return str(path.absolute())
    if "asr_model" in chosen.model_fields_set:
        return chosen.asr_model
    if default is None:
        raise OptionError("ASR_MODEL", "is not set, and the model repository holds no weights; try ASR_MODEL=base")
    return default


def _diarization_model(chosen: "Settings") -> str | None:
    """None where the variable is not set: unlike the command, the original did not diarize by default."""
    if "diarization_model" not in chosen.model_fields_set or chosen.diarization_model == settings.NO_MODEL:
        return None
    return chosen.diarization_model


# --- the model repository -------------------------------------------------------------------------------------------

_HANDLER = '''"""Lets Inference Endpoints run diarist; what it does is in `diarist.handler`."""

from diarist.handler import EndpointHandler as _EndpointHandler


class EndpointHandler(_EndpointHandler):
    default_asr_model = {model}
'''

_REQUIREMENTS = """{package}
{torch}  # lifts the older version that the container pins
"""

_CARD = """---
license: apache-2.0
library_name: diarist
pipeline_tag: automatic-speech-recognition
tags:
- automatic-speech-recognition
- speaker-diarization
- endpoints-template
---

# diarist on Inference Endpoints

Who said what in a recording: send audio, get text, times and speakers. This repository holds the handler of
diarist {version} for the task `custom`; the licence is that of the handler, models have their own.

## Settings

Environment variables of the endpoint:

| variable | meaning |
|---|---|
| `ASR_MODEL` | recognition model: a name, hub id or path{asr_default} |
| `DIARIZATION_MODEL` | `default`, a hub id or a path; unset: speakers are not told apart |
| `ASSISTANT_MODEL` | small recognition model that drafts for the main one, or `ngram`; unset: none |
| `HF_TOKEN` | for gated models only. A secret: never a plain variable |

Whisper weights put into this repository are used instead of `ASR_MODEL`; models in its folder `{weights}`, laid out
like the cache of diarist, are not fetched again.

## Use

```python
import base64

import requests

with open("meeting.mp3", "rb") as file:
    recording = base64.b64encode(file.read()).decode()
reply = requests.post(
    URL,
    headers={{"Authorization": f"Bearer {{TOKEN}}"}},
    json={{"inputs": recording, "parameters": {{"num_speakers": 2}}}},
)
for part in reply.json()["speakers"]:
    print(part["speaker"], part["text"])
```

The container that runs this handler does one request at a time and refuses media types that it does not know. The
container image of diarist does neither: prefer it where the endpoint may run an image of its own.
"""


def repository_files(*, model: str | None = None, package: str | None = None) -> dict[str, str]:
    """The text of each file of a model repository that runs diarist.

    Args:
        model: Recognition model where the endpoint's environment names none.
        package: What pip installs diarist from; None is this version of it.

    Raises:
        OptionError: `model` is no name.

    >>> sorted(repository_files())
    ['README.md', 'handler.py', 'requirements.txt']
    """
    if model is not None and not _MODEL_NAME.fullmatch(model):
        raise OptionError("--model", f"{model!r} is not the name of a model: letters, digits and ._-/ only")
    return {
        "handler.py": _HANDLER.format(model=json.dumps(model) if model else None),
        "requirements.txt": _REQUIREMENTS.format(
            package=package or f"diarist=={__version__}",
            torch=TORCH,
        ),
        "README.md": _CARD.format(
            version=__version__,
            asr_default=f"; unset: `{model}`" if model else "; required unless weights lie here",
            weights=WEIGHTS_FOLDER,
        ),
    }


def export(folder: Path, files: Mapping[str, str], *, replace: bool = False) -> list[Path]:
    """Write the files of a model repository.

    Args:
        folder: Where to; made if it is not there. Other files in it are left alone.
        files: Text by name.
        replace: Whether files that are there may be written over.

    Raises:
        OptionError: A file is there with another content, and `replace` is not set; nothing is written then.
    """
    paths = {folder / name: text for name, text in files.items()}
    differing = [path.name for path, text in paths.items() if path.exists() and path.read_text("utf-8") != text]
    if differing and not replace:
        raise OptionError("DIR", f"{folder} has another {', '.join(differing)}; --force writes over them")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    return list(paths)
