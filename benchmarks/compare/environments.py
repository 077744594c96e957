"""Virtual environments of the peers: made once, under the cache folder, from pinned requirements."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

from compare.peer import Environment, PeerError

_INSTALL_S = 30 * 60


def ensure(environment: Environment, cache: Path) -> Path:
    """The interpreter of an environment, which is made first where it is not there as wanted.

    Raises:
        PeerError: It cannot be installed.
    """
    base = ensure(environment.base, cache) if environment.base else None
    folder = cache / "environments" / environment.name
    python = folder / "bin" / "python"
    stamp = folder / "installed.json"
    wanted = json.dumps(
        [environment.requirements, environment.dependencies, environment.without, str(base), sys.version]
    )
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    log = cache / "logs" / f"install-{environment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], output.fileno(), log)
        seen = [str(_packages(cache / "environments" / name)) for name in _bases(environment)]
        (_packages(folder) / "bases.pth").write_text("\n".join(seen))
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        alone = [] if environment.dependencies else ["--no-deps"]
        _run([*pip, *alone, *environment.requirements], output.fileno(), log)
        if environment.without:
            _run([str(python), "-m", "pip", "uninstall", "--yes", *environment.without], output.fileno(), log)
    stamp.write_text(wanted)
    return python


def _bases(environment: Environment) -> list[str]:
    """Names of the environments whose packages it sees, nearest first: Python does not follow one from another."""
    base = environment.base
    return [base.name, *_bases(base)] if base else []


def _packages(folder: Path) -> Path:
    """Where an environment of this interpreter's version keeps its packages."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))


def _run(command: list[str], output: int, log: Path) -> None:
    try:
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=_INSTALL_S
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"cannot be installed: not done after {_INSTALL_S // 60} minutes") from None
    except subprocess.CalledProcessError:
        raise PeerError(f"cannot be installed: {last_error(log)}") from None


def last_error(log: Path) -> str:
    """The line of a log that most likely says what went wrong: the last that speaks of an error, or the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:300]
