"""The layers of the package, proved from its imports: only downwards, and never to a sibling.

| rank | units |
|---|---|
| 0 | contention, errors, heap, importing, native, settings, stopwatch, timeline |
| 1 | audio, models, compute |
| 2 | asr, diarization |
| 3 | attribution, transcript, formats, request |
| 4 | pipeline |
| 5 | engine, original, distillation |
| 6 | server, handler, deploy, benchmark |
| 7 | cli |
"""

import ast
import subprocess
import sys

import pytest

import source_tree

RANKS = {
    **dict.fromkeys(("contention", "errors", "heap", "importing", "native", "settings", "stopwatch", "timeline"), 0),
    **dict.fromkeys(("audio", "models", "compute"), 1),
    **dict.fromkeys(("asr", "diarization"), 2),
    **dict.fromkeys(("attribution", "transcript", "formats", "request"), 3),
    "pipeline": 4,
    **dict.fromkeys(("engine", "original", "distillation"), 5),
    **dict.fromkeys(("server", "handler", "deploy", "benchmark"), 6),
    "cli": 7,
    "__main__": 8,
}
SIBLINGS = {
    ("settings", "errors"): "every module may raise",
    ("formats", "transcript"): "the written forms are made of transcripts",
}
INSIDE_FUNCTIONS = {("transcript", "formats"): "`Transcript.write` hands itself to the writers"}
ROOT = "the package itself"
HEAVY = (
    "torch",
    "av",
    "scipy",
    "numpy",
    "soxr",
    "tokenizers",
    "transformers",
    "huggingface_hub",
    "pydantic",
    "safetensors",
)
LIGHT_MODULES = ("", "errors", "timeline", "attribution", "transcript", "formats", "cli", "models")
NEVER_IMPORTED = ("transformers", "pyannote", "onnxruntime", "whisper", "faster_whisper", "whisperx", "jiwer", "pytest")
"""Oracles of the tests: the product stands without them."""


def unit(name):
    """The unit of a dotted name: `diarist.models.resolve` and `models.resolve` belong to `models`."""
    first = name.removeprefix("diarist").removeprefix(".").split(".")[0]
    return first if first in RANKS else ROOT


def faults(importer, tree, package="diarist"):
    """What a module imports against the layers."""
    found = []
    for imported in source_tree.imports(tree, package):
        if imported.module.split(".")[0] != "diarist":
            continue
        pair = (unit(importer), unit(imported.module))
        if pair[0] == pair[1] or pair[1] == ROOT or pair in SIBLINGS:
            continue
        if pair in INSIDE_FUNCTIONS and not imported.at_import:
            continue
        if RANKS[pair[1]] >= RANKS[pair[0]]:
            found.append(f"{importer}, line {imported.line}: imports {imported.module}")
    return found


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.name_of)
def test_imports_go_down(path):
    name = source_tree.name_of(path)
    assert name == "" or name.split(".")[0] in RANKS, f"{name} has no rank"
    if name:  # the package itself re-exports, lazily
        assert faults(name, source_tree.parse(path), source_tree.package_of(path)) == []


def test_the_package_itself_imports_nothing_at_import():
    tree = source_tree.parse(source_tree.PACKAGE / "__init__.py")
    assert [i.module for i in source_tree.imports(tree) if i.at_import and i.module.startswith("diarist")] == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("asr.recognizer", "from diarist.diarization import stream"),
        ("diarization.stream", "import diarist.asr.recognizer"),
        ("models.resolve", "from diarist import compute"),
        ("audio.decode", "def f():\n    from diarist.models import resolve"),
        ("audio.decode", "from ..models import resolve"),
        ("timeline", "from diarist.transcript import Transcript"),
        ("attribution", "if TYPE_CHECKING:\n    from diarist.transcript import Transcript"),
        ("transcript", "from diarist import formats"),
        ("pipeline", "import diarist.cli"),
    ],
)
def test_imports_against_the_layers_are_found(importer, source):
    assert len(faults(importer, ast.parse(source), "diarist.audio")) == 1


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.name_of)
def test_the_product_does_not_import_its_oracles(path):
    found = {imported.module.split(".")[0] for imported in source_tree.imports(source_tree.parse(path))}
    assert found.isdisjoint(NEVER_IMPORTED)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_stay_light(module):
    name = f"diarist.{module}".rstrip(".")
    assert heavy_after(f"import {name}") == []


def test_a_servers_process_does_not_compute():
    loaded = heavy_after("import diarist.engine.engine, diarist.server.serve")
    assert set(loaded) <= {"numpy", "pydantic", "soxr"}


def heavy_after(statement):
    """What is loaded after a statement of what takes long to load, or much memory."""
    program = f"import sys\n{statement}\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()
