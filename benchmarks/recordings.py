"""The shared conversations and what is known about them."""

from dataclasses import dataclass
from pathlib import Path

from diarist.timeline import Segment, Turn

SHARED = Path(__file__).resolve().parents[2] / "shared"
CONVERSATIONS = ("two00", "three00", "five00")


class Spoken:
    """Anything whose sentences are known."""

    __slots__ = ()
    sentences: tuple[tuple[str, str], ...]
    """Speaker and words, in order of their start."""

    @property
    def text(self) -> str:
        return " ".join(words for _, words in self.sentences)

    @property
    def text_by_speaker(self) -> dict[str, str]:
        return joined(self.sentences)


@dataclass(frozen=True, slots=True)
class Conversation(Spoken):
    """A recording with its references."""

    name: str
    audio: Path
    sentences: tuple[tuple[str, str], ...]
    """Speaker and words, in order of their start."""
    turns: tuple[Turn, ...]
    reference_turns: tuple[Turn, ...]
    """What pyannote.audio finds in it with the centroid clustering of its 3.1 pipeline."""


def conversations(data: Path) -> list[Conversation]:
    """The three conversations under `data`, beside which lies `reference`."""
    folder, reference = data / "conversations", data.parent / "reference"
    return [
        Conversation(
            name,
            folder / f"{name}.flac",
            read_stm(folder / f"{name}.stm"),
            read_rttm(folder / f"{name}.rttm"),
            read_rttm(reference / f"{name}.3.1.rttm"),
        )
        for name in CONVERSATIONS
    ]


def joined(sentences: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """All words of each speaker."""
    texts: dict[str, list[str]] = {}
    for speaker, words in sentences:
        texts.setdefault(speaker, []).append(words)
    return {speaker: " ".join(parts) for speaker, parts in texts.items()}


def read_stm(path: Path) -> tuple[tuple[str, str], ...]:
    rows = [line.split(maxsplit=5) for line in path.read_text().splitlines() if line and not line.startswith(";")]
    rows.sort(key=lambda row: float(row[3]))
    return tuple((row[2], row[5]) for row in rows)


def speaker_of(path: Path) -> str:
    """The number of who speaks: LibriSpeech's file names begin with it."""
    return path.name.partition("-")[0]


def read_rttm(path: Path) -> tuple[Turn, ...]:
    rows = [line.split() for line in path.read_text().splitlines() if line.startswith("SPEAKER")]
    return tuple(Turn(Segment(float(row[3]), float(row[3]) + float(row[4])), row[7]) for row in rows)
