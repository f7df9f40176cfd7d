"""Reads every import of a tree of Python files with `ast`; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported name."""

    file: Path
    line: int
    importer: str
    """dotted name of the importing module"""
    name: str
    """dotted name as far as the statement gives it: `from a.b import c` is a.b.c"""
    lazy: bool
    """inside a function, or for the type checker only"""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules_of(root: Path, packages: tuple[str, ...]) -> list[str]:
    """Dotted names of all modules of the packages below `root`, generated code left out."""
    return [_module(file.relative_to(root)) for file in _files(root, packages)]


def imports_of(root: Path, packages: tuple[str, ...]) -> list[Import]:
    """Imports of all modules of the packages below `root`, generated code left out."""
    found: list[Import] = []
    for file in _files(root, packages):
        relative = file.relative_to(root)
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(relative))
        folder = ".".join(relative.parts[:-1])
        found += [
            Import(relative, line, _module(relative), name, lazy)
            for name, line, lazy in _names(tree, folder)
        ]
    return found


def _files(root: Path, packages: tuple[str, ...]) -> list[Path]:
    files = (file for package in packages for file in (root / package).rglob("*.py"))
    return sorted(file for file in files if not file.stem.endswith(("_pb2", "_pb2_grpc")))


def _module(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _names(tree: ast.Module, package: str) -> Iterator[tuple[str, int, bool]]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, lazy = pending.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, lazy
        elif isinstance(node, ast.Attribute):
            # `import torch; torch.nn.Linear` imports torch.nn as well as a statement would.
            dotted = _dotted(node)
            if dotted is not None and is_in(dotted, "torch.nn"):
                yield dotted, node.lineno, lazy
                continue
        inner = lazy or isinstance(node, functions) or _is_for_types(node)
        pending += [(child, inner) for child in ast.iter_child_nodes(node)]


def _is_for_types(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return _dotted(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None
