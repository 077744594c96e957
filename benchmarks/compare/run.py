"""diarist beside its peers, in one command.

Makes an environment for each peer, converts the same Whisper base weights for it, keeps all of them warm, and has them
hear the same recordings in turns, round by round. Writes results.json, results.md, results.png and results.html. A peer
that cannot be installed, prepared or run is listed with the reason.
"""

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from compare import corpus, environments, hardware, plot, report, results
from compare.measure import Contender, Plan, Say, measure, steps
from compare.peer import Environment, Kit, Peer, PeerError
from compare.peers import ONLY_IF_NAMED, TABLE
from compare.protocol import Task
from compare.results import OURS, PeerResults, Results
from recordings import CONVERSATIONS, SHARED

_DEFAULT_PEERS = [peer.name for peer in TABLE if peer.name not in ONLY_IF_NAMED]
_CACHE = Path.home() / ".cache" / "diarist-compare"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    console = Console(stderr=True, log_path=False)
    peers = [peer for peer in TABLE if peer.name in options.peers]
    folder: Path = options.cache / "recordings"
    try:
        recordings = corpus.gather(options.recordings, options.data, folder)
        clip = corpus.clip(options.data, folder)
    except FileNotFoundError as error:
        sys.exit(f"{error}; --data names the folder of the shared recordings")
    options.out.mkdir(parents=True, exist_ok=True)
    found = Results(
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        hardware=hardware.describe(),
        threads=options.threads,
        durations={recording.name: recording.duration for recording in recordings},
        clip_s=corpus.CLIP_S,
        peers=[PeerResults(peer.name, peer.title, peer.settings) for peer in peers],
    )
    plan = Plan(options.rounds, options.starts, options.clips, options.limit_minutes * 60)
    with _progress(console) as progress:
        contenders = prepare(peers, found, options.cache, options.threads, console.log)
        works = [contender.peer.works for contender in contenders]
        bar = progress.add_task("measuring", total=steps(len(contenders), works, len(recordings), plan))
        measure(
            found,
            contenders,
            recordings,
            clip,
            plan,
            say=console.log,
            step=lambda: progress.advance(bar),
            save=lambda so_far: write(so_far, options.out),
        )
    print(report.markdown(found), end="")


def prepare(peers: Sequence[Peer], found: Results, cache: Path, threads: int, say: Say) -> list[Contender]:
    """Install peers and convert weights; who cannot be had keeps its row, with the reason."""

    def python(environment: Environment) -> Path:
        return environments.ensure(environment, cache)

    ready = []
    for peer, row in zip(peers, found.peers, strict=True):
        say(f"preparing {peer.name}")
        try:
            own = python(peer.environment) if peer.environment else Path(sys.executable)
            models = peer.prepare(Kit(cache / "models", python))
        except PeerError as error:
            row.failure = str(error)
        except Exception as error:  # noqa: BLE001 - one peer's trouble must not end the comparison
            row.failure = f"cannot be prepared: {type(error).__name__}: {error}"
        else:
            task = Task(models=models, options=peer.options, works=peer.works, threads=threads)
            ready.append(Contender(peer, task, own, cache / "logs" / f"{peer.name}.log", row))
        if row.failure is not None:
            say(f"{peer.name} {row.failure}")
    return ready


def write(found: Results, folder: Path) -> None:
    """The results in all their forms."""
    results.save(found, folder / "results.json")
    picture = plot.png(found)
    (folder / "results.png").write_bytes(picture)
    (folder / "results.md").write_text(report.markdown(found), encoding="utf-8")
    (folder / "results.html").write_text(report.page(found, picture), encoding="utf-8")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(peer.name for peer in TABLE)
    parser.add_argument("--peers", type=_list, default=_DEFAULT_PEERS, help=f"of {names} [all but the last two]")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is heard [3]")
    parser.add_argument("--starts", type=int, default=3, help="how often each process is started [3]")
    parser.add_argument("--clips", type=int, default=10, help="how often the short clip is heard [10]")
    parser.add_argument("--threads", type=int, default=2, help="processor threads of each [2]")
    parser.add_argument(
        "--recordings",
        type=_list,
        default=list(CONVERSATIONS),
        help=f"names, paths (with .stm and .rttm beside), or {corpus.JOINED} [{','.join(CONVERSATIONS)}]",
    )
    parser.add_argument("--limit-minutes", type=float, default=90, help="work of each peer in the rounds [90]")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="shared recordings [../shared/data]")
    parser.add_argument("--cache", type=Path, default=_CACHE, help=f"environments, converted weights [{_CACHE}]")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder for the results [comparison]")
    options = parser.parse_args(arguments)
    unknown = set(options.peers) - {peer.name for peer in TABLE}
    if unknown:
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; there are {names}")
    if options.rounds < 1 or options.threads < 1 or options.starts < 0 or options.clips < 0:
        parser.error("--rounds and --threads are at least 1, --starts and --clips at least 0")
    if OURS not in options.peers:
        options.peers.append(OURS)  # the ratios are to it
    options.cache, options.out = options.cache.absolute(), options.out.absolute()
    return options


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
