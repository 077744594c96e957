"""The table from exceptions to answers: exhaustive, without leaks, and the only one."""

import ast
import errno
import inspect

import pytest
from leaks import LEAKS
from starlette.exceptions import HTTPException

import source_tree
from diarist import errors
from diarist.server.errors import RULES, Refusal, answer

CLASSES = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.DiaristError)]
SECRET = "0x7f12 at /root/secret/model.bin: Traceback (most recent call last) KeyError"


def made(kind):
    return kind("num_speakers", "0 is not enough") if kind is errors.OptionError else kind(SECRET)


def test_h17_every_class_has_its_rule():
    assert set(RULES) == set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("path", ["/predict", "/v1/audio/transcriptions"])
def test_h16_h17_what_clients_are_told(kind, path):
    told = answer(made(kind), path)
    assert told.code == kind.code
    assert 400 <= told.status <= 599
    text = str(told.body(path))
    assert not LEAKS.search(text), text
    assert ("retry-after" in told.headers) == (told.status in (429, 503))


def test_h17_blame():
    statuses = {kind.__name__: answer(made(kind)).status for kind in CLASSES}
    for name, status in statuses.items():
        if issubclass(getattr(errors, name), errors.AudioError) and name != "AudioNotFoundError":
            assert status in (413, 415, 422)
    assert (statuses["OutOfMemoryError"], statuses["QueueFullError"], statuses["DeadlineError"]) == (503, 429, 504)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(SECRET), KeyError(SECRET), OSError(SECRET), HTTPException(418, SECRET)]
)
def test_h16_what_nobody_foresaw(error):
    told = answer(error, "/v1/models")
    assert not LEAKS.search(str(told.body("/v1/models")))


def test_h37_a_full_disk_is_the_servers_state():
    for number in (errno.ENOSPC, errno.EMFILE, errno.EROFS):
        told = answer(OSError(number, SECRET, "/root/secret"))
        assert (told.status, told.code) == (507, "no_space")


def test_messages_are_one_short_line():
    told = answer(Refusal(400, "c", "a\r\nset-cookie: x\x1b[31m" + "y" * 10_000))
    assert len(told.message) == 500
    assert told.message.startswith("a set-cookie: x [31m")


@pytest.mark.parametrize(
    "path",
    [path for path in source_tree.files() if source_tree.name_of(path).startswith("server")],
    ids=source_tree.name_of,
)
def test_h16_no_other_door(path):
    """In the server, only `server.errors` makes text of exceptions."""
    if source_tree.name_of(path) == "server.errors":
        return
    tree = source_tree.parse(path)
    caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name} | {"error"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("str", "repr"):
            used = {part.id for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Name)}
            assert not used & caught, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.FormattedValue):
            used = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            assert not used & caught, f"{path.name}:{node.lineno}"
