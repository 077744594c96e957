"""On what a comparison ran."""

import os
import platform
from pathlib import Path

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_TELLING_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "CT2_FORCE_CPU_ISA")
"""Whoever sets one of them measures another machine, in effect."""


def describe() -> dict[str, str]:
    """Processor, memory, system, and what has been switched off."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    flags = set(_first(lines, "flags").split())
    switched = [f"{name}={os.environ[name]}" for name in _TELLING_VARIABLES if name in os.environ]
    return {
        "processor": _first(lines, "model name"),
        "cores": str(os.cpu_count()),
        "instructions": " ".join(flag for flag in _TELLING_FLAGS if flag in flags),
        "memory": f"{pages * page_bytes / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        **({"switched": " ".join(switched)} if switched else {}),
    }


def _first(lines: list[str], key: str) -> str:
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")
