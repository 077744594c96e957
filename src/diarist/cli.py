"""The command `diarist`: thin, and polite to terminals, pipes and scripts.

What was said goes to standard output, everything else (progress, warnings, paths of written files, errors) to standard
error. Exit status: 0 done, 1 something failed, 2 wrong usage, 130 interrupted. An error is one message without a
traceback, which `--debug` adds. Files are written aside and renamed, so an interruption leaves none half written.
"""

import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from diarist import __version__, models
from diarist.errors import DiaristError, ModelNotFoundError, OptionError
from diarist.formats import FORMATS, line, one_line

if TYPE_CHECKING:
    from diarist.benchmark.rounds import Row
    from diarist.distillation.distill import Progress as Distilling
    from diarist.distillation.training import Measurement
    from diarist.pipeline import Pipeline, Progress
    from diarist.settings import Settings
    from diarist.transcript import Transcript

STANDARD_INPUT = "-"
DEFAULT_FORMATS = ("txt", "srt", "vtt", "json")
"""Written when `--output-dir` is given without `--format`."""
MEDIA_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("aac", "aif", "aifc", "aiff", "amr", "flac", "m4a", "m4b", "mka", "mp3", "mpga", "oga", "ogg", "opus"),
        *("w64", "wav", "wave", "wma"),
        *("3gp", "m4v", "mkv", "mov", "mp4", "webm"),
    )
)
"""Files of a folder that are taken for recordings. A file that is named is tried whatever its suffix."""
_SPEAKER_STYLES = ("cyan", "green", "magenta", "yellow", "blue", "red")
_INTERRUPTED = 130

app = typer.Typer(
    rich_markup_mode="markdown",  # in rich's own, a default written as [base] is a tag and vanishes
    name="diarist",
    help="Turns recordings into who-said-what transcripts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(no_args_is_help=True, help="Which weights there are, and which are on this machine.")
app.add_typer(models_app, name="models")
handler_app = typer.Typer(no_args_is_help=True, help="The handler for the container of Inference Endpoints.")
app.add_typer(handler_app, name="handler")
deploy_app = typer.Typer(no_args_is_help=True, help="Inference Endpoints: created, watched, changed and removed.")
app.add_typer(deploy_app, name="deploy")


class Task(StrEnum):
    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Assisted(StrEnum):
    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"

    @property
    def asked(self) -> Literal["auto"] | bool:
        """As `Pipeline` takes it."""
        return "auto" if self is Assisted.AUTO else self is Assisted.TRUE


class Access(StrEnum):
    AUTHENTICATED = "authenticated"
    PUBLIC = "public"
    PRIVATE = "private"


class Clustering(StrEnum):
    CENTROID = "centroid"
    VBX = "vbx"


@dataclass(frozen=True, slots=True)
class Job:
    """One recording to transcribe."""

    source: Path | None
    """None is standard input."""
    label: str
    """The recording as the user named it."""
    stem: Path
    """Where its files go under the output folder, without suffix."""


Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]


def main() -> None:
    """Run the command and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets a mark, not an exception
    try:
        app(prog_name="diarist")
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # a full disk has been told; what cannot be written must not change the exit status
            _discard_output()
        gc.freeze()  # otherwise half a second goes into looking for cycles in all that torch brought, which is over now


# --- errors ---------------------------------------------------------------------------------------------------------


def _say(message: str, style: str = "") -> None:
    """Print to standard error, whatever the message holds; colour only on a terminal."""
    clean = "\n".join(("  " if part.startswith("  ") else "") + one_line(part) for part in message.split("\n"))
    Console(stderr=True).print(Text(clean, style), soft_wrap=True)


def _explain(error: Exception) -> str:
    """An error as a message for the person at the terminal."""
    if isinstance(error, DiaristError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


def _report(error: Exception, *, debug: bool, about: str = "") -> None:
    if debug:
        traceback.print_exception(error)
    message = _explain(error)
    _say(f"diarist: {f'{about}: ' if about and about not in message else ''}{message}", "red")


@contextmanager
def _reported(*, debug: bool) -> Iterator[None]:
    """Turn what goes wrong inside into a message and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        _say("diarist: interrupted")
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        _leave_pipe()
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 (told in one line, whatever it is)
        _report(error, debug=debug)
        raise typer.Exit(2 if isinstance(error, OptionError) else 1) from None


def _leave_pipe() -> NoReturn:
    """Whoever read our output has gone (`diarist ... | head`): nothing is left to say, not even at exit."""
    _discard_output()
    raise typer.Exit(1)


def _discard_output() -> None:
    """Whatever is still to be written to standard output goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- progress -------------------------------------------------------------------------------------------------------


def _bars(console: Console, amount: ProgressColumn) -> Bars:
    description = TextColumn("{task.description}", markup=False)
    return Bars(description, BarColumn(), amount, TimeRemainingColumn(), console=console, transient=True)


@contextmanager
def _fetching(*, quiet: bool) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """A bar for every file that is being fetched; in a pipe one line for each. None when nothing is to be shown."""
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        announced: set[str] = set()

        def announce(what: str, _done: int, total: int | None) -> None:
            if what not in announced:
                announced.add(what)
                _say(f"fetching {what}{f' ({_megabytes(total)})' if total else ''}")

        yield announce
        return

    with _bars(console, DownloadColumn()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"fetching {what}", total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


@contextmanager
def _working(label: str, *, quiet: bool) -> Iterator["Callable[[Progress], None] | None"]:
    """A bar with stage, per cent and time left for one recording; None in a pipe."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return

    with _bars(console, TaskProgressColumn()) as bars:
        task = bars.add_task(label, total=None)

        def show(progress: "Progress") -> None:
            total = None if progress.fraction is None else 1.0
            bars.update(task, description=f"{label}: {progress.stage}", completed=progress.fraction or 0.0, total=total)

        yield show


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


# --- transcribe -----------------------------------------------------------------------------------------------------


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diarist {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def transcribe(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Recordings, folders of them, or - for standard input.")
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", envvar="ASR_MODEL", help="Recognition model: a name, hub id or path. [base]"),
    ] = None,
    diarize: Annotated[bool, typer.Option("--diarize/--no-diarize", help="Tell the speakers apart.")] = True,
    diarization_model: Annotated[
        str | None,
        typer.Option(envvar="DIARIZATION_MODEL", help="Diarization pipeline: a name or path. [default]"),
    ] = None,
    assistant_model: Annotated[
        str | None,
        typer.Option(
            "--assistant",
            "--assistant-model",
            envvar="ASSISTANT_MODEL",
            help="Small model that drafts for the main one: a name, hub id, path or ngram. The text is the same.",
        ),
    ] = None,
    assisted: Annotated[
        Assisted, typer.Option(help="Let the assistant draft: always, never, or where that is faster.")
    ] = Assisted.AUTO,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="What is spoken: en, de, ...; auto detects it. [auto]")
    ] = None,
    task: Annotated[Task, typer.Option(help="Write what is said, or its English translation.")] = Task.TRANSCRIBE,
    num_speakers: Annotated[int | None, typer.Option(min=1, help="How many people speak, if known.")] = None,
    min_speakers: Annotated[int | None, typer.Option(min=1, help="At least so many people speak.")] = None,
    max_speakers: Annotated[int | None, typer.Option(min=1, help="At most so many people speak.")] = None,
    clustering: Annotated[Clustering | None, typer.Option(help="How voices are told apart. [the pipeline's]")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", "-f", help="Files to write: txt,srt,vtt,json,tsv,rttm,stm or all."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder for the files. [the current one]")
    ] = None,
    initial_prompt: Annotated[str | None, typer.Option(help="Text before the recording: names, style.")] = None,
    hotwords: Annotated[str | None, typer.Option(help="Words to favour.")] = None,
    word_timestamps: Annotated[bool, typer.Option(help="Exact times of words; off: spread over their segment.")] = True,
    beam_size: Annotated[int, typer.Option(min=1, help="Hypotheses to keep: more is slower.")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, envvar="DIARIST_BATCH_SIZE", help="Windows decoded together. [what suits the device]"),
    ] = None,
    device: Annotated[str | None, typer.Option(envvar="DIARIST_DEVICE", help="auto, cpu or cuda. [auto]")] = None,
    dtype: Annotated[
        str | None, typer.Option(envvar="DIARIST_DTYPE", help="auto, float32, bfloat16, float16 or int8. [auto]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, envvar="DIARIST_THREADS", help="Processor threads.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(envvar="DIARIST_CACHE", help="Folder for fetched models. [user's cache]")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", envvar=["DIARIST_OFFLINE", "HF_HUB_OFFLINE"], help="Open no connection.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Errors only; the transcript is printed if no files are written.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write down who said what in recordings.

    The transcript is printed. Files are written too where --format or --output-dir is given.
    """
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        settings = configuration.load(
            asr_model=model,
            diarization_model=diarization_model,
            assistant_model=assistant_model,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            threads=threads,
            cache_dir=cache_dir,
            offline=offline or None,
        )
        diarize = diarize and settings.diarization_model != configuration.NO_MODEL
        wanted = _formats(formats, diarize=diarize) if formats or output_dir else ()
        folder = output_dir or Path()
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
        jobs, failures = _jobs(files)
        for failure in failures:
            _say(f"diarist: {failure}", "red")
        if not jobs:
            raise typer.Exit(1)

        pipeline = _load(
            settings,
            diarize=diarize,
            language=None if language == "auto" else language,
            clustering=clustering,
            quiet=quiet,
        )
        options: dict[str, Any] = {
            "task": task.value,
            "num_speakers": num_speakers,
            "min_speakers": min_speakers,
            "max_speakers": max_speakers,
            "diarize": diarize,
            "initial_prompt": initial_prompt,
            "hotwords": hotwords,
            "word_timestamps": word_timestamps,
            "beam_size": beam_size,
            "assisted": assisted.asked,
        }
        failed = len(failures)
        for job in jobs:
            try:
                transcript = _run(pipeline, job, options, quiet=quiet)
                _show(transcript, job, heading=len(jobs) > 1, printed=not (quiet and wanted), quiet=quiet)
                _write(transcript, job, folder, wanted, quiet=quiet)
            except (OptionError, BrokenPipeError):
                raise  # holds for every recording
            except Exception as error:  # noqa: BLE001 (one recording must not stop the others)
                _report(error, debug=debug, about=job.label)
                failed += 1
        if failed:
            raise typer.Exit(1)


def _formats(given: Sequence[str] | None, *, diarize: bool) -> tuple[str, ...]:
    """The formats that `--format` asks for, in order, without repetition."""
    names = [name.strip().lower() for text in given or DEFAULT_FORMATS for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*FORMATS, "all")]
    if unknown or not names:
        raise OptionError("--format", f"{', '.join(unknown) or 'nothing'} is not one of {', '.join(FORMATS)}, all")
    if "rttm" in names and not diarize:
        raise OptionError("--format", "rttm holds speakers only, and they are not told apart here")
    if "all" in names:
        names = [name for name in FORMATS if diarize or name != "rttm"]
    return tuple(dict.fromkeys(names))


def _jobs(arguments: Iterable[str]) -> tuple[list[Job], list[str]]:
    """The recordings that the arguments name, and what is wrong with the others.

    Output names are the recordings' without suffix, below a folder that was given as in it; where two would collide,
    the later one keeps its suffix, and beyond that gets a number.
    """
    found: list[tuple[Path | None, str, Path]] = []  # source, label, output name with suffix
    failures: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if argument == STANDARD_INPUT:
            found.append((None, "standard input", Path("stdin")))
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_recording(file, path))
            found += [(file, str(file), file.relative_to(path)) for file in inside]
            if not inside:
                failures.append(f"{argument}: no recordings in this folder")
        elif path.exists():
            found.append((path, argument, Path(path.name)))
        else:
            failures.append(f"{argument}: no such file")
    jobs: list[Job] = []
    taken: set[Path] = set()
    for source, label, name in found:
        names = (name.with_suffix(""), name, *(name.with_name(f"{name.name}-{n}") for n in range(2, len(found) + 2)))
        stem = next(candidate for candidate in names if candidate not in taken)
        taken.add(stem)
        jobs.append(Job(source, label, stem))
    return jobs, failures


def _is_recording(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in MEDIA_SUFFIXES and not hidden and file.is_file()


def _load(
    settings: "Settings", *, diarize: bool, language: str | None, clustering: Clustering | None, quiet: bool
) -> "Pipeline":
    from diarist.importing import import_lean  # noqa: PLC0415

    import_lean("diarist.pipeline")
    from diarist.pipeline import Pipeline  # noqa: PLC0415 (torch is slow to import)

    options = settings.pipeline_options()
    if not diarize:
        options["diarization_model"] = None
    with _fetching(quiet=quiet) as progress:
        return Pipeline(
            **options, language=language, clustering=clustering.value if clustering else None, progress=progress
        )


def _run(pipeline: "Pipeline", job: Job, options: dict[str, Any], *, quiet: bool) -> "Transcript":
    if job.source is None and sys.stdin.isatty():
        raise OptionError("FILE", "- reads standard input, but that is a terminal")
    with _working(job.label, quiet=quiet) as progress:
        return pipeline(job.source or sys.stdin.buffer, progress=progress, **options)


def _show(transcript: "Transcript", job: Job, *, heading: bool, printed: bool, quiet: bool) -> None:
    """Print a transcript, in colour on a terminal, and what the user should know about it."""
    if printed:
        console = Console(highlight=False)
        wraps = not console.is_terminal  # in a pipe a line stays a line
        if heading:
            console.print(Text(f"==> {one_line(job.label)} <=="), soft_wrap=wraps)
        for utterance in transcript.utterances:
            style = ""
            if utterance.speaker in transcript.speakers:
                style = _SPEAKER_STYLES[transcript.speakers.index(utterance.speaker) % len(_SPEAKER_STYLES)]
            console.print(Text(line(utterance), style), soft_wrap=wraps)
        sys.stdout.flush()  # a reader who has gone is noticed here, not at exit
    if not quiet:
        if not transcript.utterances:
            _say(f"{job.label}: no speech found")
        for warning in transcript.warnings:
            _say(f"warning: {job.label}: {warning}", "yellow")


def _write(transcript: "Transcript", job: Job, folder: Path, wanted: Sequence[str], *, quiet: bool) -> None:
    for name in wanted:
        path = folder / job.stem.with_name(f"{job.stem.name}.{name}")
        if job.source is not None and path.exists() and path.samefile(job.source):
            raise DiaristError(f"{path} is the recording itself: choose another --output-dir")
        path.parent.mkdir(parents=True, exist_ok=True)
        transcript.write(path, name)
        if not quiet:
            _say(f"wrote {path}")


# --- serve ----------------------------------------------------------------------------------------------------------


def _setting(help: str, variable: str, *flags: str) -> Any:  # noqa: A002 (typer's word)
    """An option of `serve`. Its variable is read by `ServerSettings`, not here, so that it is known who gave a value."""
    return typer.Option(*flags, help=f"{help} (env: {variable})")


@app.command()
def serve(
    *,
    host: Annotated[str | None, _setting("Address to listen on. [127.0.0.1]", "DIARIST_HOST")] = None,
    port: Annotated[int | None, _setting("Port to listen on. [7860]", "DIARIST_PORT")] = None,
    model: Annotated[str | None, _setting("Recognition model. [base]", "ASR_MODEL", "--model", "-m")] = None,
    diarization_model: Annotated[
        str | None,
        _setting("Pipeline, or none. [default; none where only ASR_MODEL is set]", "DIARIZATION_MODEL"),
    ] = None,
    assistant_model: Annotated[str | None, _setting("Model that drafts for the main one.", "ASSISTANT_MODEL")] = None,
    api_keys: Annotated[
        str | None, _setting("Keys that clients must send, parted by commas.", "DIARIST_API_KEYS")
    ] = None,
    api_keys_file: Annotated[Path | None, _setting("File with a key on each line.", "DIARIST_API_KEYS_FILE")] = None,
    insecure: Annotated[
        bool | None, _setting("Listen publicly without a key.", "DIARIST_INSECURE", "--insecure")
    ] = None,
    cors_origins: Annotated[
        str | None, _setting("Web pages that may call, parted by commas.", "DIARIST_CORS_ORIGINS")
    ] = None,
    max_body_bytes: Annotated[int | None, _setting("Longest request body. [512 MB]", "DIARIST_MAX_BODY_BYTES")] = None,
    max_form_files: Annotated[int | None, _setting("Most files in a form. [2]", "DIARIST_MAX_FORM_FILES")] = None,
    max_form_fields: Annotated[int | None, _setting("Most fields in a form. [50]", "DIARIST_MAX_FORM_FIELDS")] = None,
    max_text_bytes: Annotated[
        int | None, _setting("Longest text field of a form. [4 MB]", "DIARIST_MAX_TEXT_BYTES")
    ] = None,
    max_audio_s: Annotated[float | None, _setting("Longest recording. [4 h]", "DIARIST_MAX_AUDIO_S")] = None,
    max_native_bytes: Annotated[
        int | None, _setting("Most decoded bytes of a recording. [16 GiB]", "DIARIST_MAX_NATIVE_BYTES")
    ] = None,
    max_running: Annotated[int | None, _setting("Requests under way at once. [64]", "DIARIST_MAX_RUNNING")] = None,
    max_waiting: Annotated[int | None, _setting("Requests that may wait. [256]", "DIARIST_MAX_WAITING")] = None,
    max_waiting_s: Annotated[
        float | None, _setting("Seconds of audio that may wait. [4 h]", "DIARIST_MAX_WAITING_S")
    ] = None,
    deadline_base_s: Annotated[
        float | None, _setting("Seconds that any request may take. [60]", "DIARIST_DEADLINE_BASE_S")
    ] = None,
    deadline_per_second: Annotated[
        float | None, _setting("More for each second of audio. [GPU 0.1, CPU 3]", "DIARIST_DEADLINE_PER_SECOND")
    ] = None,
    header_timeout_s: Annotated[
        float | None, _setting("Seconds for the head of a request. [10]", "DIARIST_HEADER_TIMEOUT_S")
    ] = None,
    min_upload_rate: Annotated[
        int | None, _setting("Bytes a second that a body must come with. [8192]", "DIARIST_MIN_UPLOAD_RATE")
    ] = None,
    write_timeout_s: Annotated[
        float | None, _setting("Seconds until a client that reads nothing is cut off. [30]", "DIARIST_WRITE_TIMEOUT_S")
    ] = None,
    keep_alive_s: Annotated[
        float | None, _setting("Seconds that idle connections are kept. [20]", "DIARIST_KEEP_ALIVE_S")
    ] = None,
    graceful_stop_s: Annotated[
        float | None, _setting("Seconds from SIGTERM to the exit. [30]", "DIARIST_GRACEFUL_STOP_S")
    ] = None,
    spool_dir: Annotated[Path | None, _setting("Folder for uploads under way.", "DIARIST_SPOOL_DIR")] = None,
    min_free_bytes: Annotated[
        int | None, _setting("What its disk must have free. [256 MB]", "DIARIST_MIN_FREE_BYTES")
    ] = None,
    log_format: Annotated[str | None, _setting("json or console. [json]", "DIARIST_LOG_FORMAT")] = None,
    log_level: Annotated[str | None, _setting("debug, info, warning or error. [info]", "DIARIST_LOG_LEVEL")] = None,
    otel: Annotated[bool | None, _setting("Send OpenTelemetry traces.", "DIARIST_OTEL", "--otel")] = None,
    device: Annotated[str | None, _setting("auto, cpu or cuda. [auto]", "DIARIST_DEVICE")] = None,
    dtype: Annotated[str | None, _setting("auto, float32, bfloat16, float16 or int8. [auto]", "DIARIST_DTYPE")] = None,
    threads: Annotated[int | None, _setting("Processor threads.", "DIARIST_THREADS")] = None,
    batch_size: Annotated[int | None, _setting("Windows decoded together.", "DIARIST_BATCH_SIZE")] = None,
    cache_dir: Annotated[Path | None, _setting("Folder for fetched models.", "DIARIST_CACHE")] = None,
    offline: Annotated[
        bool | None, _setting("Open no connection.", "DIARIST_OFFLINE, HF_HUB_OFFLINE", "--offline")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve the original's routes, the OpenAI audio API and Hugging Face clients on one port."""
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    flags = {name: value for name, value in locals().items() if name not in ("configuration", "debug", "model")}
    with _reported(debug=debug):
        settings = configuration.load_server(asr_model=model, **flags)
        from diarist.audio import DecodeLimits  # noqa: PLC0415 (as below)
        from diarist.engine.engine import Engine, EngineOptions  # noqa: PLC0415 (the web framework is slow to import)
        from diarist.server.serve import run  # noqa: PLC0415

        options = EngineOptions(
            pipeline=settings.pipeline_options(),
            limits=DecodeLimits(settings.max_audio_s, settings.max_native_bytes),
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            max_waiting_s=settings.max_waiting_s,
        )
        run(settings, Engine(options))


# --- distill --------------------------------------------------------------------------------------------------------


@app.command()
def distill(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Recordings of speech, or folders of them; no texts needed.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the assistant.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", envvar="ASR_MODEL", help="Main model: a name, hub id or path. [base]"),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, max=2, help="Decoder layers of the assistant.")] = 2,
    minutes: Annotated[float, typer.Option(help="Time to take in all.")] = 60.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps at most. (as many as there is time for)")
    ] = None,
    mixes: Annotated[int, typer.Option(min=0, help="How often the sound is cut and joined anew.")] = 8,
    held_out: Annotated[float, typer.Option(help="Share of the recordings to measure by.")] = 0.2,
    held_out_files: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Recordings, or folders, to measure by instead; repeatable."),
    ] = None,
    language: Annotated[str | None, typer.Option("--language", "-l", help="What is spoken. (detected)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    device: Annotated[str | None, typer.Option(envvar="DIARIST_DEVICE", help="auto, cpu or cuda. [auto]")] = None,
    dtype: Annotated[
        str | None, typer.Option(envvar="DIARIST_DTYPE", help="auto, float32, bfloat16, float16 or int8. [auto]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    debug: Debug = False,
) -> None:
    """Make an assistant for a recognition model, which speeds it up, from recordings alone.

    It learns to draft what the model itself writes. Ctrl-C keeps what was done: --resume goes on.
    """
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        settings = configuration.load(asr_model=model, device=device, dtype=dtype)
        measured = _recordings(held_out_files or ())
        recordings = _recordings(files)
        from diarist.distillation import distill as distillation  # noqa: PLC0415 (torch is slow to import)
        from diarist.distillation.training import TrainingOptions  # noqa: PLC0415 (torch is slow to import)

        options = distillation.DistillOptions(
            layers=layers,
            language=None if language == "auto" else language,
            held_out=held_out,
            held_out_files=tuple(measured),
            mixes=mixes,
            training=TrainingOptions(steps=steps, minutes=minutes, seed=seed),
        )
        with _fetching(quiet=quiet) as progress:
            pulled: dict[str, Any] = {
                "offline": settings.offline,
                "token": settings.token,
                "cache_dir": settings.cache_dir,
            }
            models.resolve(settings.asr_model, "asr", progress=progress, **pulled)
        with _distilling(quiet=quiet) as report:
            made = distillation.distill(
                settings.asr_model,
                recordings,
                output,
                options,
                device=settings.device,
                dtype=settings.dtype,
                resume=resume,
                report=report,
                **pulled,
            )
        for warning in () if quiet else made.warnings:
            _say(f"warning: {warning}", "yellow")
        if not quiet:
            _say(
                f"{made.folder}: {_quality(made.best)}; {made.examples} windows of {made.speech_s / 60:.0f} min of speech"
            )
            _say(f"{made.folder / distillation.WORK} is needed only to go on with --resume")
        typer.echo(made.folder)


def _recordings(arguments: Iterable[str]) -> list[Path]:
    """The files that the arguments name.

    Raises:
        OptionError: One of them names none.
    """
    jobs, failures = _jobs(arguments)
    if failures or any(job.source is None for job in jobs):
        raise OptionError("FILE", failures[0] if failures else "standard input cannot be read twice: name files")
    return [job.source for job in jobs if job.source is not None]


def _quality(measured: "Measurement") -> str:
    return f"{measured.acceptance:.1%} of held-out tokens drafted right, {measured.tokens_per_pass:.2f} tokens per pass"


@contextmanager
def _distilling(*, quiet: bool) -> Iterator["Callable[[Distilling], None] | None"]:
    """A bar with time left and the latest measurement; in a pipe a line for each stage and measurement."""
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    told: list[Any] = []

    def tell(progress: "Distilling") -> None:
        """Once for each stage, and for each measurement."""
        latest = progress.latest
        if (progress.stage, latest) in told[-1:]:
            return
        told.append((progress.stage, latest))
        if latest is None:
            _say(progress.stage)
        else:
            loss = "" if latest.loss is None else f"loss {latest.loss:.3f}, "
            _say(f"{progress.fraction:.0%}, step {latest.step}: {loss}{_quality(latest)}")

    if not console.is_terminal:
        yield tell
        return
    with _bars(console, TaskProgressColumn()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: "Distilling") -> None:
            if progress.stage not in tasks:
                for task in tasks.values():
                    bars.remove_task(task)
                tasks.clear()
                tasks[progress.stage] = bars.add_task(progress.stage, total=1.0)
            found = f": {_quality(progress.latest)}" if progress.latest else ""
            bars.update(tasks[progress.stage], completed=progress.fraction, description=f"{progress.stage}{found}")

        yield show


# --- benchmark ------------------------------------------------------------------------------------------------------


@app.command()
def benchmark(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Recordings that begin with speech. (a telephone call, fetched)"),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", envvar="ASR_MODEL", help="Recognition model: a name, hub id or path. (base)"),
    ] = None,
    assistants: Annotated[
        list[str] | None,
        typer.Option(
            "--assistant",
            envvar="ASSISTANT_MODEL",
            help="What drafts: ngram, a name, hub id or path; repeatable. (ngram, tiny.en)",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 3,
    cells: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CELL", help="short, long, batch or concurrent; repeatable. (all)"),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, max=256, help="How many are made at once in the last cell.")] = 8,
    language: Annotated[str | None, typer.Option("--language", "-l", help="What is spoken. (detected)")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, envvar="DIARIST_BATCH_SIZE", help="Windows decoded together.")
    ] = None,
    device: Annotated[str | None, typer.Option(envvar="DIARIST_DEVICE", help="auto, cpu or cuda. (auto)")] = None,
    dtype: Annotated[
        str | None, typer.Option(envvar="DIARIST_DTYPE", help="auto, float32, bfloat16, float16 or int8. (auto)")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, envvar="DIARIST_THREADS", help="Processor threads.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the server that runs there: diarist's, or another of this kind.")
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="DIARIST_API_KEY", help="Key that the server asks for.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The table and errors only.")] = False,
    debug: Debug = False,
) -> None:
    """Measure what an assistant brings: short and long audio, a full batch and requests at once, as one table.

    Everything is measured in turns on this machine, or on a server, beside the figures that the original published.
    """
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        settings = configuration.load(
            asr_model=model, batch_size=batch_size, device=device, dtype=dtype, threads=threads
        )
        from diarist.benchmark import cells as sounds  # noqa: PLC0415 (numpy and torch are slow to import)
        from diarist.benchmark import report  # noqa: PLC0415
        from diarist.benchmark.rounds import Subject, measure  # noqa: PLC0415

        unknown = [name for name in cells or () if name not in sounds.CELLS]
        if unknown:
            raise OptionError("--only", f"{unknown[0]!r} is not one of {', '.join(sounds.CELLS)}")
        chosen = [name for name in sounds.CELLS if not cells or name in cells]
        language = None if language == "auto" else language
        recordings = _recordings(files) if files else [_sample(settings, quiet=quiet)]
        subject: Subject
        if url is None:
            from diarist.benchmark.local import LocalModels  # noqa: PLC0415

            options = settings.pipeline_options()
            with _fetching(quiet=quiet) as progress:
                subject = LocalModels(assistants or ("ngram", "tiny.en"), language, **options, progress=progress)
        else:
            from diarist.benchmark.remote import Server  # noqa: PLC0415

            subject = Server(url, api_key, language)
        made = sounds.make_cells(recordings, chosen, batch_size or subject.rows, requests)
        with _measuring(quiet=quiet) as tell:
            rows = measure(subject, made, rounds, tell)
        _print_table(subject.title, rows, rounds)
        if json_file is not None:
            document = report.document(subject.description, rows, rounds)
            json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            if not quiet:
                _say(f"wrote {json_file}")


def _sample(settings: "Settings", *, quiet: bool) -> Path:
    """The telephone call of the catalogue."""
    with _fetching(quiet=quiet) as progress:
        found = models.resolve(
            "telephone-sample",
            "sample",
            offline=settings.offline,
            token=settings.token,
            progress=progress,
            cache_dir=settings.cache_dir,
        )
    return found.files["sample.wav"]


@contextmanager
def _measuring(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with what is being measured; in a pipe nothing."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda *_: None
        return
    with _bars(console, TaskProgressColumn()) as bars:
        task = bars.add_task("", total=1)
        yield lambda done, total, what: bars.update(task, description=what, completed=done, total=total)


def _print_table(title: str, rows: "Sequence[Row]", rounds: int) -> None:
    """For people on a terminal, as markdown in a pipe."""
    from diarist.benchmark import report  # noqa: PLC0415 (numpy is slow to import)

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(report.table(title, rows, console.width))
        for note in report.notes(rows, rounds):
            console.print(Text(note, "dim"))
    else:
        typer.echo(report.markdown(title, rows, rounds))
    sys.stdout.flush()


# --- models ---------------------------------------------------------------------------------------------------------


@models_app.command("list")
def models_list(*, debug: Debug = False) -> None:
    """Show the models that are known, and which of them are on this machine."""
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        rows = [("NAME", "KIND", "SIZE", "HERE", "LICENCE", "FROM")]
        for model in models.list_models(configuration.load().cache_dir):
            size = _megabytes(model.size_bytes) if model.size_bytes else "-"
            here = "yes" if model.cached else "-"
            rows.append((model.name, model.kind, size, here, model.licence, "; ".join(model.sources)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for row in rows:
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            typer.echo(text[:columns])  # on a terminal a row stays a row
        sys.stdout.flush()


Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Models, or pipelines of them.")]


@models_app.command("pull")
def models_pull(
    names: Names = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    debug: Debug = False,
) -> None:
    """Fetch and check models; without names, those that `diarist transcribe` uses."""
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        settings = configuration.load()
        defaults = [settings.asr_model, settings.diarization_model, settings.assistant_model]
        for name, kind in _parts(names or [name for name in defaults if name and name != configuration.NO_MODEL]):
            with _fetching(quiet=quiet) as progress:
                local = models.pull(
                    name,
                    kind=kind,
                    offline=settings.offline,
                    token=settings.token,
                    progress=progress,
                    cache_dir=settings.cache_dir,
                )
            if not quiet:
                _say(f"{local.name}: {local.directory} ({local.source}; {local.licence})")


@models_app.command("verify")
def models_verify(names: Names = None, *, debug: Debug = False) -> None:
    """Hash the files of models on this machine anew; without names, of all."""
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        cache_dir = configuration.load().cache_dir
        chosen: list[tuple[str, models.Kind | None]] = [
            (model.name, model.kind) for model in models.list_models(cache_dir) if model.cached
        ]
        bad = 0
        for name, kind in _parts(names) if names else chosen:
            for check in models.verify(name, kind=kind, cache_dir=cache_dir):
                bad += not check.ok
                typer.echo(f"{'ok   ' if check.ok else 'WRONG'}  {name}  {check.file}  {check.actual or 'missing'}")
        if bad:
            _say("diarist: a file is not what it should be: delete its folder and run `diarist models pull`", "red")
            raise typer.Exit(1)


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(metavar="NAME")], *, debug: Debug = False) -> None:
    """Print the folder of a model that is on this machine."""
    from diarist import settings as configuration  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        typer.echo(models.path(name, cache_dir=configuration.load().cache_dir))


def _parts(names: Iterable[str]) -> Iterator[tuple[str, models.Kind | None]]:
    """Each name with its kind if that is known; a diarization pipeline as its models."""
    for name in names:
        try:
            parts = models.diarization_parts(name)
        except ModelNotFoundError:
            yield name, None
            continue
        yield parts.segmentation, "segmentation"
        yield parts.embedding, "embedding"
        if parts.plda:
            yield parts.plda, "plda"


# --- handler --------------------------------------------------------------------------------------------------------


@handler_app.command("export")
def handler_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model repository is to be.")],
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Recognition model unless the endpoint's ASR_MODEL says another."),
    ] = None,
    package: Annotated[
        str | None, typer.Option(help="What pip is to install diarist from: a requirement. (this version)")
    ] = None,
    with_models: Annotated[
        bool, typer.Option("--with-models", help="Put the models in too, so that the endpoint fetches nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a model repository for Inference Endpoints, ready to push; prints the files."""
    from diarist import handler, settings  # noqa: PLC0415 (pydantic is slow to import)

    with _reported(debug=debug):
        if with_models:
            model = model or "base"
        files = handler.repository_files(model=model, package=package)
        for path in handler.export(folder, files, replace=force):
            typer.echo(path)
        chosen = settings.load()
        for name, kind in _parts([model, "default"] if model and with_models else []):
            with _fetching(quiet=False) as progress:
                place = folder / handler.WEIGHTS_FOLDER
                token, offline = chosen.token, chosen.offline
                local = models.pull(name, kind=kind, offline=offline, token=token, progress=progress, cache_dir=place)
            typer.echo(local.directory)


# --- deploy ---------------------------------------------------------------------------------------------------------


EndpointName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the endpoint.")]
Namespace = Annotated[str | None, typer.Option(help="Account that has the endpoint. (that of the token)")]
Repository = Annotated[str | None, typer.Option(help="Model repository to serve: account/name.")]
Revision = Annotated[str | None, typer.Option(help="Commit, branch or tag of the repository. (newest commit)")]
Image = Annotated[str | None, typer.Option(help="Container image. (the platform's, which runs handler.py)")]
Accelerator = Annotated[str | None, typer.Option(help="gpu or cpu. (gpu)")]
InstanceType = Annotated[str | None, typer.Option(help="Hardware. (nvidia-t4)")]
InstanceSize = Annotated[str | None, typer.Option(help="How much of it. (x1)")]
MinReplica = Annotated[int | None, typer.Option(min=0, help="Least copies that run. (0)")]
MaxReplica = Annotated[int | None, typer.Option(min=1, help="Most copies that run. (1)")]
ScaleToZero = Annotated[
    int | None, typer.Option("--scale-to-zero", min=1, metavar="MINUTES", help="Stop when nobody called for so long.")
]
AsrModel = Annotated[str | None, typer.Option("--model", "-m", help="Sets ASR_MODEL.")]
DiarizationModel = Annotated[str | None, typer.Option(help="Sets DIARIZATION_MODEL.")]
AssistantModel = Annotated[str | None, typer.Option(help="Sets ASSISTANT_MODEL.")]
Env = Annotated[list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Plain variable; repeatable.")]
Secret = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME", help="Secret, its value taken from this environment; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the request and send nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until the endpoint answers.")]


@deploy_app.command("create")
def deploy_create(
    name: EndpointName,
    *,
    repository: Repository = None,
    namespace: Namespace = None,
    revision: Revision = None,
    image: Image = None,
    vendor: Annotated[str | None, typer.Option(help="Cloud. (aws)")] = None,
    region: Annotated[str | None, typer.Option(help="Its region. (us-east-1)")] = None,
    accelerator: Accelerator = None,
    instance_type: InstanceType = None,
    instance_size: InstanceSize = None,
    min_replica: MinReplica = None,
    max_replica: MaxReplica = None,
    scale_to_zero: ScaleToZero = None,
    type: Annotated[Access | None, typer.Option(help="Who may call. (authenticated)")] = None,  # noqa: A002
    model: AsrModel = None,
    diarization_model: DiarizationModel = None,
    assistant_model: AssistantModel = None,
    env: Env = None,
    secret: Secret = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    debug: Debug = False,
) -> None:
    """Create an endpoint."""
    from diarist import deploy  # noqa: PLC0415 (only this command needs it)

    with _reported(debug=debug):
        options = deploy.EndpointOptions(
            repository=repository,
            revision=revision,
            image=image,
            vendor=vendor,
            region=region,
            accelerator=accelerator,
            instance_type=instance_type,
            instance_size=instance_size,
            min_replica=min_replica,
            max_replica=max_replica,
            scale_to_zero_minutes=scale_to_zero,
            type=type.value if type else None,
            env=_plain_variables(env, model, diarization_model, assistant_model),
            secrets=deploy.secrets(secret, os.environ) if secret else None,
        )
        if type is Access.PUBLIC:
            _say("warning: anyone who finds the address may use this endpoint, at your expense", "yellow")
        _send(lambda api, account: deploy.create(api, name, account, options), namespace, dry_run=dry_run, wait=wait)


@deploy_app.command("update")
def deploy_update(
    name: EndpointName,
    *,
    namespace: Namespace = None,
    repository: Repository = None,
    revision: Revision = None,
    image: Image = None,
    accelerator: Accelerator = None,
    instance_type: InstanceType = None,
    instance_size: InstanceSize = None,
    min_replica: MinReplica = None,
    max_replica: MaxReplica = None,
    scale_to_zero: ScaleToZero = None,
    model: AsrModel = None,
    diarization_model: DiarizationModel = None,
    assistant_model: AssistantModel = None,
    env: Env = None,
    secret: Secret = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    debug: Debug = False,
) -> None:
    """Change what is given; variables, and secrets, are replaced as a whole."""
    from diarist import deploy  # noqa: PLC0415 (only this command needs it)

    with _reported(debug=debug):
        options = deploy.EndpointOptions(
            repository=repository,
            revision=revision,
            image=image,
            accelerator=accelerator,
            instance_type=instance_type,
            instance_size=instance_size,
            min_replica=min_replica,
            max_replica=max_replica,
            scale_to_zero_minutes=scale_to_zero,
            env=_plain_variables(env, model, diarization_model, assistant_model),
            secrets=deploy.secrets(secret, os.environ) if secret else None,
        )
        _send(lambda api, account: deploy.update(api, name, account, options), namespace, dry_run=dry_run, wait=wait)


@deploy_app.command("status")
def deploy_status(name: EndpointName, *, namespace: Namespace = None, wait: Wait = False, debug: Debug = False) -> None:
    """Print name, status and address."""
    from diarist import deploy  # noqa: PLC0415 (only this command needs it)

    with _reported(debug=debug):
        _send(lambda api, account: deploy.status(api, name, account), namespace, wait=wait)


@deploy_app.command("pause")
def deploy_pause(name: EndpointName, *, namespace: Namespace = None, debug: Debug = False) -> None:
    """Stop an endpoint until it is resumed; it costs nothing meanwhile."""
    from diarist import deploy  # noqa: PLC0415 (only this command needs it)

    with _reported(debug=debug):
        _send(lambda api, account: deploy.pause(api, name, account), namespace)


@deploy_app.command("resume")
def deploy_resume(name: EndpointName, *, namespace: Namespace = None, wait: Wait = False, debug: Debug = False) -> None:
    """Start a paused endpoint."""
    from diarist import deploy  # noqa: PLC0415 (only this command needs it)

    with _reported(debug=debug):
        _send(lambda api, account: deploy.resume(api, name, account), namespace, wait=wait)


@deploy_app.command("delete")
def deploy_delete(
    name: EndpointName,
    *,
    namespace: Namespace = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    """Remove an endpoint, for good."""
    from diarist import deploy, settings  # noqa: PLC0415 (only this command needs it)

    with _reported(debug=debug):
        if not yes and not sys.stdin.isatty():
            raise OptionError("--yes", "is needed where nobody can be asked: deleting cannot be undone")
        if not yes and not typer.confirm(f"Delete {name} for good?", err=True):
            raise typer.Exit(1)
        deploy.delete(deploy.connect(settings.load().token), name, namespace)
        _say(f"deleted {name}")


def _plain_variables(
    env: Sequence[str] | None, model: str | None, diarization_model: str | None, assistant_model: str | None
) -> dict[str, str] | None:
    from diarist import deploy  # noqa: PLC0415 (only these commands need it)

    named = {"ASR_MODEL": model, "DIARIZATION_MODEL": diarization_model, "ASSISTANT_MODEL": assistant_model}
    return {**deploy.variables(env or ()), **{name: value for name, value in named.items() if value}} or None


def _send(
    call: Callable[[Any, str | None], Any],
    namespace: str | None,
    *,
    dry_run: bool = False,
    wait: bool = False,
) -> None:
    """Call the API and print the endpoint that it answers with; or print the request instead."""
    from diarist import deploy, settings  # noqa: PLC0415 (only these commands need it)

    api = deploy.connect(settings.load().token)
    if dry_run:
        request = deploy.rehearse(lambda: call(api, namespace or "YOUR-ACCOUNT"))
        _say(f"would send: {request.method} {request.url}")
        typer.echo(str(request))
        return
    endpoint = call(api, namespace)
    if wait:
        with _awaiting(endpoint.name) as report:
            deploy.wait(endpoint, report)
    typer.echo(one_line(deploy.describe(endpoint)))


@contextmanager
def _awaiting(name: str) -> Iterator[Callable[[str, float], None]]:
    """Status and time while an endpoint starts; in a pipe one line for each new status."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(Text(name)) as shown:
            yield lambda status, seconds: shown.update(Text(f"{name}: {status}, {seconds:.0f} s"))
        return
    told: list[str] = []

    def tell(status: str, seconds: float) -> None:
        if told[-1:] != [status]:
            told.append(status)
            _say(f"{name}: {status} after {seconds:.0f} s")

    yield tell
