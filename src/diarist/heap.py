"""The C library's heap. Without torch: the server's process, which has none, keeps itself small, too."""

import ctypes


def hand_back_freed() -> None:
    """Let the system have what this process has freed, wherever in its heap that lies. With glibc; some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
