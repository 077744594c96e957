"""Compiles `src/diarist/native`, once for each kind of processor, where there is a compiler.

Without one diarist is installed all the same, and slower.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/diarist/native/decoder.c")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-Wall",
    "-Wextra",
    "-fPIC",
    "-shared",
    "-pthread",
    "-mfma",
    "-ffp-contract=off",  # no rounding is left out in one place and not in another: numbers are the same everywhere
    "-fno-tree-pre",  # gcc 12 would keep the sums of inner loops in memory: half the speed on AVX2
)
PROCESSORS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "avx2": ("-mavx2", "-mf16c"),
}


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the libraries to wheels, and leaves them beside their source for editable installs."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - as hatchling calls it
        root = Path(self.root)
        libraries = _compile(root) if self.target_name == "wheel" else []
        if not libraries:
            return
        build_data["artifacts"].extend(f"/{library}" for library in libraries)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"  # it knows nothing of Python


def _compile(root: Path) -> list[Path]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        print("diarist: no C compiler, so recognition will be slower", file=sys.stderr)  # noqa: T201
        return []
    libraries = []
    for name, flags in PROCESSORS.items():
        library = SOURCE.with_name(f"decoder-{name}.so")
        command = [*compiler.split(), *FLAGS, *flags, "-o", str(root / library), str(root / SOURCE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - what CC names
        if done.returncode:
            print(f"diarist: {compiler} failed, so recognition will be slower:\n{done.stderr}", file=sys.stderr)  # noqa: T201
        else:
            libraries.append(library)
    return libraries
