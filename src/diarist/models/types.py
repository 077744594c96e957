"""What `models/` hands out: a model on disk, and the parts that recognition and diarization are built from.

torch and tokenizers are named here for the type checker only, so that listing or fetching models imports neither.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import tokenizers
    import torch

Kind = Literal["asr", "segmentation", "embedding", "plda", "tokenizer", "sample"]
Clustering = Literal["centroid", "vbx"]

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with what is being fetched, the bytes had so far and the bytes expected (None: unknown).

Calls come from a helper thread, about five times a second, and never after the fetch has returned.
"""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose files are on this machine, complete and verified."""

    name: str
    """Catalogue name, hub id, or the path as it was given."""
    kind: Kind
    directory: Path
    files: Mapping[str, Path]
    """File name (its role: `model.safetensors`, `tokenizer.json`, ...) to path."""
    revision: str | None
    """Commit of the hub repository; None for other sources."""
    sha256: str
    """Of the weight file; of the `sha256sum` listing of the weight files where there are several."""
    licence: str
    source: str
    """Where the files came from, in words: `hub openai/whisper-base@...`, `wheel ...`, `path ...`."""


@dataclass(frozen=True, slots=True)
class WhisperDims:
    """Sizes of a Whisper network, under the names of openai-whisper's checkpoints."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


@dataclass(frozen=True, slots=True)
class WhisperCheckpoint:
    """Everything that recognition needs from a model's files, whatever layout they had."""

    dims: WhisperDims
    tensors: "Mapping[str, torch.Tensor]"
    """Under openai-whisper's names, in the stored dtype, possibly mapped from the file: do not write into them."""
    tokenizer: "tokenizers.Tokenizer"
    """Its vocabulary always reaches `<|30.00|>`: timestamp tokens that a file leaves out are added."""
    multilingual: bool
    alignment_heads: tuple[tuple[int, int], ...]
    """(decoder layer, head) of the cross-attention heads that follow the sound."""
    suppress_tokens: tuple[int, ...]
    """Never sampled: symbols that are not speech, and task tokens."""
    begin_suppress_tokens: tuple[int, ...]
    """Never sampled first: a blank, and the end of the text."""


@dataclass(frozen=True, slots=True)
class DiarizationParts:
    """The models that a diarization pipeline is made of, each a name or path for `resolve`."""

    segmentation: str
    embedding: str
    plda: str | None
    """None where the pipeline has no PLDA; VBx clustering cannot be chosen then."""
    clustering: Clustering
    """What the pipeline uses unless the caller asks for the other."""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of `diarist models list`."""

    name: str
    kind: Kind
    licence: str
    size_bytes: int | None
    """On disk when cached, else of the first source whose size is known; None when neither is."""
    cached: bool
    pinned: bool
    """Every source is held to a hash or a revision named in the catalogue."""
    sources: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What `verify` found for one file."""

    file: str
    path: Path
    expected: str
    actual: str | None
    """None when the file is missing."""

    @property
    def ok(self) -> bool:
        return self.actual == self.expected
