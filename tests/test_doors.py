"""One door per hazard: each dangerous thing is touched in one place, proved from the syntax trees."""

import ast

import pytest

import source_tree

DOORS = {
    "bytes become samples": (
        ("audio.decode", "audio.sandbox"),
        (
            "av",
            "soundfile",
            "wave",
            "sunau",
            "aifc",
            "audioread",
            "librosa",
            "torchaudio",
            "torchcodec",
            "ffmpeg",
            "pydub",
        ),
    ),
    "files become tensors": (
        ("models",),
        (
            *(
                "pickle",
                "marshal",
                "shelve",
                "dill",
                "joblib",
                "cloudpickle",
                "yaml",
                "zipfile",
                "tarfile",
                "shutil.unpack_archive",
            ),
            *("safetensors", "onnx", "torch.load", "torch.jit.load", "torch.hub", "torch.from_file"),
            *("numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt", "numpy.genfromtxt", "scipy.io"),
        ),
    ),
    "addresses become bytes": (
        # The decoder's two sides talk through pairs of sockets, which have no address; the child has no network.
        ("models.sources", "deploy", "benchmark.remote", "audio.decode", "audio.sandbox"),
        (
            "socket",
            "urllib.request",
            "http.client",
            "requests",
            "httpx",
            "httpx2",
            "aiohttp",
            "huggingface_hub",
            "ftplib",
        ),
    ),
    "programs are started": (
        ("audio.decode", "models.sources", "engine.process", "engine.pipe"),
        (
            "subprocess",
            "os.system",
            "os.popen",
            "os.posix_spawn",
            "pty",
            "multiprocessing",
            "asyncio.create_subprocess_exec",
        ),
    ),
    "text becomes code": ((), ("eval", "exec", "compile", "__import__", "code", "runpy")),
    "names become modules": (("", "importing"), ("importlib.import_module",)),
    "tracebacks are shown": (("cli",), ("traceback", "sys.exc_info")),
}
"""What happens, the modules (or packages) where it may, and the names by which it does."""


def touches(tree, names):
    """The lines on which one of the names is imported or used."""
    found = [(imported.module, imported.line) for imported in source_tree.imports(tree)]
    found += source_tree.names_used(tree)
    return sorted({line for used, line in found if any(used == name or used.startswith(f"{name}.") for name in names)})


def is_inside(module, places):
    return any(module == place or (place and module.startswith(f"{place}.")) for place in places)


@pytest.mark.parametrize("what", DOORS)
@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.name_of)
def test_nobody_passes_by_the_door(path, what):
    places, names = DOORS[what]
    module = source_tree.name_of(path)
    if not is_inside(module, places):
        assert touches(source_tree.parse(path), names) == [], f"{what} in {module}, not in {places}"


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("bytes become samples", "def f():\n    import av"),
        ("bytes become samples", "from soundfile import read"),
        ("files become tensors", "import numpy as np\nnp.load('x')"),
        ("files become tensors", "import torch\nload = torch.load"),
        ("files become tensors", "from torch import load"),
        ("files become tensors", "from safetensors.torch import load_file"),
        ("addresses become bytes", "import urllib.request as r"),
        ("programs are started", "import os\nos.system('ls')"),
        ("programs are started", "from subprocess import run"),
        ("text becomes code", "eval('1')"),
        ("names become modules", "from importlib import import_module"),
    ],
)
def test_the_search_finds(what, source):
    assert touches(ast.parse(source), DOORS[what][1])


def test_the_search_does_not_cry_wolf():
    tree = ast.parse("import re, numpy as np\nre.compile('x'); np.save('y', 1); self.model.eval(); loader.load()")
    assert [what for what, (_, names) in DOORS.items() if touches(tree, names)] == []


def calls_with_shell(tree):
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "shell"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.name_of)
def test_h12_no_shell(path):
    assert calls_with_shell(source_tree.parse(path)) == []


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.name_of)
def test_h13_no_unsafe_unpickling(path):
    """`weights_only` is never anything but True, `allow_pickle` never anything but False."""
    safe = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False}
    tree = source_tree.parse(path)
    loose = [
        node.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg in safe
        and not (isinstance(node.value, ast.Constant) and node.value.value is safe[node.arg])
    ]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for function, keyword in (
        ("torch.load", "weights_only"),
        ("np.load", "allow_pickle"),
        ("numpy.load", "allow_pickle"),
    ):
        loose += [
            call.lineno
            for call in calls
            if ast.unparse(call.func) == function and keyword not in {word.arg for word in call.keywords}
        ]
    assert loose == []


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.name_of)
def test_checks_raise_and_are_never_asserted(path):
    assert [node.lineno for node in ast.walk(source_tree.parse(path)) if isinstance(node, ast.Assert)] == []
