"""What must never stand in an answer: addresses, paths, names of our classes and files, tracebacks."""

import re

LEAKS = re.compile(
    r"0x[0-9a-f]{2}|/root|/tmp|/home|/usr|/secret|site-packages|Traceback|[A-Z]\w+(Error|Exception)\b|\w\.py\b"
)
