"""torch in less time than `import torch` takes.

It brings 200 000 objects that stay, and a tenth of the time goes into looking for cycles among them: nobody looks.

A process that is diarist's own, as the command's is, leaves out how operators act on tensors that have a shape and no
numbers: `torch.compile`, `torch.export` and the device "meta" want it, diarist does not, and it is a quarter of what is
imported (1.47 -> 1.00 s on a processor of 2.4 GHz). For others torch stays whole: a caller may want all of it.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_LEFT_OUT = "torch._meta_registrations"
_PROVED = "__version__ = '2.13.", "cuda: Optional[str] = None"
"""What torch's `version.py` says of those that the tests were run with. Others are imported as they are."""


def import_undisturbed(name: str) -> ModuleType:
    """Import a module that may import torch; all of it."""
    with _undisturbed():
        return import_module(name)


def import_lean(name: str) -> ModuleType:
    """Import a module that imports torch, into a process in which nobody else computes with it."""
    if "torch" in sys.modules or not _is_proved():
        return import_undisturbed(name)
    sys.modules[_LEFT_OUT] = ModuleType(_LEFT_OUT)
    try:
        return import_undisturbed(name)
    finally:
        del sys.modules[_LEFT_OUT]
        if "torch" in sys.modules:
            vars(sys.modules["torch"]).pop(_LEFT_OUT.removeprefix("torch."), None)


def import_rest() -> None:
    """Import what was left out: `torch.Generator` refuses without some of it. Takes half a second, once."""
    with suppress(ModuleNotFoundError):  # another torch may have no such module
        import_module(_LEFT_OUT)


@contextmanager
def _undisturbed() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # all are old now, and not looked at as soon as it is allowed again
        if collecting:
            gc.enable()


def _is_proved() -> bool:
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    try:
        said = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return all(each in said for each in _PROVED)
