"""The folder that fetched models live in, laid out for people.

    <root>/models/asr/base/model.bin, config.json, tokenizer.json, manifest.json
    <root>/models/asr/distil-whisper--distil-large-v3/...
    <root>/models/.partial/...      what is being fetched; never read as a model
    <root>/models/.locks/...

`<root>` is `cache_dir`, else `DIARIST_CACHE`, else the user's cache folder (XDG). Copying `<root>/models`, or one
model's folder in it, to another machine is a supported way of installing models there.

A model appears by one rename of its complete folder, after every file was hashed and written through to the disk, so
that an interrupted fetch leaves nothing that looks like a model. `manifest.json` states each file's sha256, size and
modification time. At each start only size and time are compared, which costs microseconds; a file whose time changed
(a copied folder) is hashed again once. `verify` hashes everything.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import filelock
import platformdirs

from diarist.errors import ModelIntegrityError
from diarist.models.types import Kind, LocalModel

MANIFEST = "manifest.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".ckpt", ".onnx", ".npz", ".wav")
"""Files that a model's own sha256 is taken of."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest states about one file."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    kind: Kind
    licence: str
    source: str
    revision: str | None
    files: Mapping[str, FileRecord]


def default_root() -> Path:
    """`DIARIST_CACHE`, else the user's cache folder."""
    configured = os.environ.get("DIARIST_CACHE")
    return Path(configured).expanduser() if configured else Path(platformdirs.user_cache_dir("diarist"))


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(hashes: Mapping[str, str]) -> str:
    """One sha256 for a model: of its weight file, or of the `sha256sum` listing of several, sorted by name."""
    weights = {name: digest for name, digest in hashes.items() if name.endswith(WEIGHT_SUFFIXES)} or hashes
    if len(weights) == 1:
        return next(iter(weights.values()))
    listing = "".join(f"{weights[name]}  {name}\n" for name in sorted(weights))
    return hashlib.sha256(listing.encode()).hexdigest()


def _record(path: Path) -> FileRecord:
    status = path.stat()
    return FileRecord(sha256=sha256_of(path), size=status.st_size, mtime_ns=status.st_mtime_ns)


def _read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None when there is none or it is not one."""
    try:
        table = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: FileRecord(**record) for name, record in table.pop("files").items()}
        manifest = Manifest(**table, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    plain = all(Path(name).name == name and name != MANIFEST for name in manifest.files)
    return manifest if plain and manifest.files else None


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    aside = folder / f".{MANIFEST}.{os.getpid()}"
    with aside.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / MANIFEST)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Cache:
    """The models under one root folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()) / "models"

    def folder(self, kind: Kind, name: str) -> Path:
        """Where the model lives when it is cached."""
        return self.root / kind / name.replace("/", "--")

    def manifest(self, kind: Kind, name: str) -> Manifest | None:
        """What the cache says it has under this name, unchecked."""
        return _read_manifest(self.folder(kind, name))

    def hashes(self, kind: Kind, name: str) -> Mapping[str, str]:
        """sha256 of the cached files, as recorded when they were fetched; empty when there is no such model."""
        manifest = self.manifest(kind, name)
        return {file: record.sha256 for file, record in manifest.files.items()} if manifest else {}

    def get(self, kind: Kind, name: str) -> LocalModel | None:
        """The cached model, its files compared with the manifest by size and time; None when there is none.

        Raises:
            ModelIntegrityError: A file is missing or is no longer what was fetched.
        """
        folder = self.folder(kind, name)
        manifest = _read_manifest(folder)
        if manifest is None or manifest.name != name or manifest.kind != kind:
            return None
        seen = {file: self._trusted(folder / file, record) for file, record in manifest.files.items()}
        if seen != manifest.files:  # copied from elsewhere: same bytes, other times
            manifest = replace(manifest, files=seen)
            with suppress(OSError):  # a read-only cache is hashed at each start
                _write_manifest(folder, manifest)
        return LocalModel(
            name=name,
            kind=kind,
            directory=folder,
            files={file: folder / file for file in manifest.files},
            revision=manifest.revision,
            sha256=model_digest({file: record.sha256 for file, record in manifest.files.items()}),
            licence=manifest.licence,
            source=manifest.source,
        )

    @staticmethod
    def _trusted(path: Path, record: FileRecord) -> FileRecord:
        try:
            status = path.stat()
        except OSError as error:
            raise ModelIntegrityError(f"cached model file is missing: {path}") from error
        if (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns):
            return record
        if status.st_size != record.size or sha256_of(path) != record.sha256:
            raise ModelIntegrityError(f"cached model file is damaged: {path} is not the file that was fetched")
        return FileRecord(sha256=record.sha256, size=record.size, mtime_ns=status.st_mtime_ns)

    @contextmanager
    def lock(self, kind: Kind, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the model against other processes; the system frees it when the holder dies.

        Args:
            kind: Of the model.
            name: Of the model.
            waiting: Called once when another process holds it.
        """
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(locks / f"{kind}--{name.replace('/', '--')}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def staging(self, kind: Kind, name: str) -> Iterator[Path]:
        """An empty folder beside the models, gone afterwards. Call with the lock held.

        What earlier, interrupted fetches of the same model left behind is removed.
        """
        partial = self.root / ".partial"
        partial.mkdir(parents=True, exist_ok=True)
        prefix = f"{kind}--{name.replace('/', '--')}~"
        for leftover in partial.iterdir():
            if leftover.name.startswith(prefix):
                shutil.rmtree(leftover, ignore_errors=True)
        folder = partial / f"{prefix}{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self,
        staged: Path,
        *,
        name: str,
        kind: Kind,
        licence: str,
        source: str,
        revision: str | None,
        pins: Mapping[str, str],
    ) -> LocalModel:
        """Make a complete staged folder the model of that name.

        Args:
            staged: From `staging`, with every file in its place.
            name: As in the catalogue, or the hub id.
            kind: Of the model.
            licence: For the record.
            source: Where the files came from, in words.
            revision: Commit of the hub repository.
            pins: sha256 that files must have, by name.

        Raises:
            ModelIntegrityError: A file has another hash than its pin, or is missing.
        """
        files = {path.name: _record(path) for path in sorted(staged.iterdir()) if path.is_file()}
        for file, expected in pins.items():
            actual = files[file].sha256 if file in files else "missing"
            if actual != expected:
                raise ModelIntegrityError(f"{file} has sha256 {actual}, the catalogue pins {expected}")
        _write_manifest(
            staged, Manifest(name=name, kind=kind, licence=licence, source=source, revision=revision, files=files)
        )
        for path in staged.iterdir():
            _sync(path)
        _sync(staged)
        final = self.folder(kind, name)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(staged.with_name(f"{staged.name}-old"))
        staged.rename(final)
        _sync(final.parent)
        shutil.rmtree(staged.with_name(f"{staged.name}-old"), ignore_errors=True)
        model = self.get(kind, name)
        if model is None:
            raise ModelIntegrityError(f"{final}: the model vanished while it was being put in place")
        return model
