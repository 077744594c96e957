"""What is known about a peer before it runs. Standard library only: peers' own environments import this too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare.protocol import Work


class PeerError(Exception):
    """A peer cannot be installed, prepared or run; the message is the reason that the table gives."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment. Those with a base see its packages besides their own, so that torch is there once."""

    name: str
    requirements: tuple[str, ...]
    base: "Environment | None" = None
    dependencies: bool = True
    """False: what the requirements themselves require is not installed."""
    without: tuple[str, ...] = ()
    """Packages that come along and only do harm: removed again."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What a peer's `prepare` works with."""

    folder: Path
    """For converted models; each peer keeps to a name of its own in it."""
    python: Callable[[Environment], Path]
    """The interpreter of an environment, which is made first if need be."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the table."""

    name: str
    """On the command line, and in the results."""
    title: str
    settings: str
    """In words, for the table."""
    module: str
    """What the child process runs."""
    works: tuple[Work, ...]
    environment: Environment | None
    """None: the one that diarist runs in."""
    prepare: Callable[[Kit], Mapping[str, str]]
    """Converts the weights where that has not been done, and returns paths for `Task.models`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the child's environment."""

    @property
    def recognizes(self) -> bool:
        """Whether it can be asked for a text alone: who does the whole can do that part."""
        return bool({"recognition", "whole"} & set(self.works))


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder that is made under another name first, so that one made by halves is never taken for it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        make(unfinished)
        unfinished.rename(path)
    return path


TORCH = Environment("torch", ("torch==2.13.0", "numpy==2.4.6"))
"""Once for all that need it. Whether it is a build for CPUs is the package index's choice."""
