"""Memory that a process holds of the system, and how it stays small over days.

The C library keeps what is freed for the next who asks. It does so for each thread, in up to eight *arenas* a core, and
hands back little but what lies at the end of one. Where threads come and go with requests, every arena ends up with the
holes of the largest request that it has seen. So a process that serves keeps to two arenas, and hands their holes back
now and then.

oneDNN keeps a program for each shape that it meets, up to a thousand of them, of which one takes between 60 and 600 KB.
A recording needs some 150, so a process that serves keeps to that order.

Python for its part looks for cycles of objects when enough objects have come. A request that was given up leaves a few,
and with them its sound, megabytes: too few to count, so they are looked for as often.
"""

import ctypes
import gc
import os
import resource
import threading
import time
from pathlib import Path

from diarist.heap import hand_back_freed

_M_ARENA_MAX = -8  # glibc's number for it
_ARENAS = 2  # one for the thread that computes or answers, one for all others
_PROGRAMS = 256
_PERIOD_S = 10.0  # what was handed back must be touched anew, which takes some 10 ms


def keep_small() -> None:
    """Keep this process small from now on. Once, before threads are started and anything is computed."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PROGRAMS))
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim") and "MALLOC_ARENA_MAX" not in os.environ:  # glibc has it
        library.mallopt(_M_ARENA_MAX, _ARENAS)
    threading.Thread(target=_tidy_for_ever, name="memory", daemon=True).start()


def settle() -> None:
    """What there is by now stays for ever: leave it out where cycles are looked for. Once, when all is loaded.

    A look at torch's 200 000 objects takes 0.1 s.
    """
    gc.collect()
    gc.freeze()


def resident_bytes() -> float:
    """Memory of this process that is in the machine's memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return float(pages * resource.getpagesize())


def _tidy_for_ever() -> None:
    while True:
        time.sleep(_PERIOD_S)
        gc.collect()
        hand_back_freed()
