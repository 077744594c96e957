"""Compiles `src/diarist/native` where there is a compiler. Without one diarist is installed all the same, and slower."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/diarist/native/decoder.c")
LIBRARY = SOURCE.with_suffix(".so")
FLAGS = (
    *("-std=gnu11", "-O3", "-Wall", "-Wextra", "-fPIC", "-shared", "-pthread"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma"),
)


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the library to wheels, and leaves it beside its source for editable installs."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - as hatchling calls it
        root = Path(self.root)
        if self.target_name != "wheel" or not _compile(root):
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"  # it knows nothing of Python


def _compile(root: Path) -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        print("diarist: no C compiler, so decoding will be slower on processors with AVX-512 VNNI", file=sys.stderr)  # noqa: T201
        return False
    command = [*compiler.split(), *FLAGS, "-o", str(root / LIBRARY), str(root / SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - what CC names
    if done.returncode:
        print(f"diarist: {compiler} failed, so decoding will be slower:\n{done.stderr}", file=sys.stderr)  # noqa: T201
    return done.returncode == 0
