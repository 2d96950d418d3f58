"""The package's layout: short files and functions, packages without code, and no import circle.

import-linter checks which package may import which (pyproject.toml). It does not see method_configs/, which setuptools
maps to mobiler2l_ns.method_configs, so its rule is checked here.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, METHODS = "mobiler2l_ns", "mobiler2l_ns.method_configs"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 50


def module_name(path: Path) -> str:
    """The name under which a file of the package is imported."""
    parts = [METHODS, *path.relative_to(ROOT).with_suffix("").parts[1:]]
    if path.relative_to(ROOT).parts[0] == PACKAGE:
        parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = sorted(path for folder in (PACKAGE, "method_configs") for path in (ROOT / folder).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
MODULES = {module_name(path): path for path in FILES}


def imported_modules(name: str) -> set[str]:
    """Modules of the package that a module imports anywhere in its code."""
    found = set()
    is_package = MODULES[name].name == "__init__.py"
    for node in ast.walk(TREES[MODULES[name]]):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") + ["__init__"] * is_package
            prefix = ".".join(parents[: -node.level]) if node.level else ""
            base = ".".join(part for part in (prefix, node.module) if part)
            candidates = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {candidate for candidate in candidates if candidate in MODULES}
    return found - {name}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(TREES[path]) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [n.name for n in functions if n.end_lineno - n.lineno + 1 > MAX_FUNCTION_LINES] == []


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=relative)
def test_packages_are_a_docstring(path):
    """Importing one module then imports no other. The methods' package is what nerfstudio's entry points name."""
    docstring, *code = TREES[path].body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    if module_name(path) == PACKAGE:
        assert [target.id for node in code for target in node.targets] == ["__version__"]
    elif module_name(path) != METHODS:
        assert code == []


def test_there_is_no_import_circle():
    """Modules are removed once all that they import is removed; those of a circle remain."""
    remaining = {name: imported_modules(name) for name in MODULES}
    assert sum(map(len, remaining.values())) > 100
    while free := [name for name, imports in remaining.items() if not imports & remaining.keys()]:
        for name in free:
            del remaining[name]
    assert not remaining


def test_nothing_imports_the_methods():
    importers = {name for name in MODULES if any(m.startswith(METHODS) for m in imported_modules(name))}
    assert {name for name in importers if not name.startswith(METHODS)} == set()
