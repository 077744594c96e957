"""The syntax trees of the package, for tests that prove things about its source."""

import ast
import builtins
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import diarist

PACKAGE = Path(diarist.__file__).parent


class Import(NamedTuple):
    """One imported name."""

    module: str
    """Dotted, absolute: `diarist.models`, `numpy`, `diarist.models.resolve`."""
    line: int
    at_import: bool
    """Runs when the module is imported: not inside a function, nor for the type checker only."""


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name below the package: `cli`, `models.resolve`, `models`; `` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def package_of(path: Path) -> str:
    """The package that a file's relative imports are relative to."""
    return ".".join(["diarist", *path.parent.relative_to(PACKAGE).parts])


def imports(tree: ast.Module, package: str = "diarist") -> Iterator[Import]:
    """Every import of a tree. `package` is what relative imports are relative to."""
    yield from _imports(tree, package, at_import=True)


def _imports(node: ast.AST, package: str, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_import)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                ancestors = package.split(".")
                base = ".".join([*ancestors[: len(ancestors) - child.level + 1], *([base] if base else [])])
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_checker = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            if for_checker:
                for part in child.body:
                    yield from _imports(ast.Module([part], []), package, at_import=False)
                for part in child.orelse:
                    yield from _imports(ast.Module([part], []), package, at_import=at_import)
            else:
                yield from _imports(child, package, at_import=at_import and not inside)


def names_used(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imported and built-in names, dotted and in full: `np.load` is `numpy.load`, `open` is `open`."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            written = ast.unparse(node)
            first, _, rest = written.partition(".")
            plain = all(part.isidentifier() for part in written.split("."))
            if plain and (first in known or hasattr(builtins, first)):
                yield ".".join(part for part in (known.get(first, first), rest) if part), node.lineno
