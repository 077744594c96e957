"""torch in less time than `import torch` takes, for processes that are diarist's own: the command and the worker.

How operators act on tensors that have a shape and no numbers is left out: `torch.compile`, `torch.export` and the device
"meta" want it, diarist does not, and it is a quarter of what is imported (1.47 -> 1.00 s on a processor of 2.4 GHz).
`import diarist` leaves torch whole: a caller may want all of it.
"""

import gc
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_LEFT_OUT = "torch._meta_registrations"
_PROVED = "__version__ = '2.13.", "cuda: Optional[str] = None"
"""What torch's `version.py` says of those that the tests were run with. Others are imported as they are."""


def import_lean(name: str) -> ModuleType:
    """Import a module that imports torch."""
    if "torch" in sys.modules or not _is_proved():
        return import_module(name)
    collecting = gc.isenabled()
    gc.disable()  # a tenth of the time is spent looking for cycles among objects that stay
    sys.modules[_LEFT_OUT] = ModuleType(_LEFT_OUT)
    try:
        return import_module(name)
    finally:
        del sys.modules[_LEFT_OUT]
        if "torch" in sys.modules:
            vars(sys.modules["torch"]).pop(_LEFT_OUT.removeprefix("torch."), None)
        if collecting:
            gc.enable()


def import_rest() -> None:
    """Import what was left out: `torch.Generator` refuses without some of it. Takes half a second, once."""
    with suppress(ModuleNotFoundError):  # another torch may have no such module
        import_module(_LEFT_OUT)


def _is_proved() -> bool:
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    try:
        said = Path(torch.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return all(each in said for each in _PROVED)
