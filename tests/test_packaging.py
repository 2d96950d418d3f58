"""The wheel: its files, its requirements, and what nerfstudio finds of it in an environment of its own."""

import ast
import configparser
import email
import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Set, Tuple

import pytest

ROOT = Path(__file__).parents[1]
# What these modules import may be an extra; all others need what the plugin itself requires.
OPTIONAL = ("mobiler2l_ns/export/", "mobiler2l_ns/process_data/", "mobiler2l_ns/runtime.py")
SHARED_NAMES = {"nerfstudio": "nerfstudio", "torch": "torch"}  # modules that several distributions hold


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, as a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("mobiler2l_ns", "method_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(files.read(name))


@pytest.fixture(scope="module")
def methods(wheel) -> Set[str]:
    """The methods that the wheel hands to nerfstudio."""
    entry_points = configparser.ConfigParser(delimiters="=")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/entry_points.txt"))
        entry_points.read_string(files.read(name).decode())
    return set(entry_points["nerfstudio.method_configs"])


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(metadata: email.message.Message) -> Dict[str, Set[str]]:
    """The distributions that each extra asks for; those of the plugin itself under ""."""
    found: Dict[str, Set[str]] = {}
    for line in metadata.get_all("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == [\"'](.+?)[\"']", marker)
        name = canonical(re.match(r"[\w.-]+", requirement)[0])
        found.setdefault(extra[1] if extra else "", set()).add(name)
    return found


def imported_modules(text: str) -> Iterator[str]:
    """Top-level names of what a module imports anywhere, also through ``require("name")``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


@functools.cache
def holders() -> Mapping[str, List[str]]:
    """Top-level module -> the installed distributions that hold it."""
    return importlib.metadata.packages_distributions()


def distributions_of(text: str, own: Set[str]) -> Set[str]:
    """The distributions that a module imports, apart from Python's own modules and the given ones."""
    names = set(imported_modules(text)) - set(sys.stdlib_module_names) - own
    return {canonical(SHARED_NAMES.get(name) or holders().get(name, [name])[0]) for name in names}


def test_it_holds_every_package_and_file(wheel):
    with zipfile.ZipFile(wheel) as files:
        held = {name for name in files.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mobiler2l_ns").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"mobiler2l_ns/method_configs/{path.name}" for path in (ROOT / "method_configs").glob("*.py")}
    assert held == expected
    assert {"mobiler2l_ns/export/web/index.html", "mobiler2l_ns/export/web/viewer.js"} < held
    for name in held:
        assert name.endswith("/__init__.py") or "/web/" in name or f"{Path(name).parent}/__init__.py" in held, name


def test_the_plugin_requires_what_it_imports(wheel, metadata):
    requirements = required(metadata)
    optional = requirements[""] | requirements["export"] | requirements["coreml"] | requirements["capture"]
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if name.endswith(".py"):
                needed = distributions_of(files.read(name).decode(), {"mobiler2l_ns"})
                declared = optional if name.startswith(OPTIONAL) else requirements[""]
                assert needed <= declared, f"{name} imports {needed - declared}"


@pytest.mark.parametrize(
    ("folder", "extras"), [("scripts", {"export", "capture", "demo"}), ("tests", {"export", "capture", "demo", "dev"})]
)
def test_extras_hold_what_scripts_and_tests_import(metadata, folder, extras):
    requirements = required(metadata)
    declared = set().union(requirements[""], *(requirements[extra] for extra in extras))
    local = {path.stem for name in ("scripts", "tests") for path in (ROOT / name).rglob("*")} | {"mobiler2l_ns"}
    for path in (ROOT / folder).rglob("*.py"):
        needed = distributions_of(path.read_text(), local)
        assert needed <= declared, f"{path.relative_to(ROOT)} imports {needed - declared}"


def test_constraints_pin_every_requirement(metadata):
    pinned = {canonical(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    needed = set().union(*required(metadata).values()) - {canonical("mobiler2l-ns")}
    assert needed <= pinned, needed - pinned


def numbers(version: str) -> Tuple[int, ...]:
    """(2, 5) for "2.5" or "2.5.*"."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def combinations() -> List[Tuple[str, str, Dict[str, str]]]:
    """Name, Python and versions of each row of the table in scripts/bench/compat.sh."""
    script = (ROOT / "scripts" / "bench" / "compat.sh").read_text()
    rows = [row.split() for row in re.search(r"<< 'TABLE'\n(.*?)\nTABLE\n", script, re.S)[1].splitlines()]
    return [(name, python, dict(pin.split("==") for pin in pins)) for name, python, *pins in rows]


def test_tried_versions_are_whole_and_within_the_limits(metadata):
    limits = {}
    for line in metadata.get_all("Requires-Dist"):
        name, rest = re.match(r"([\w.-]+)([^;]*)", line).groups()
        limits.setdefault(canonical(name), []).extend(re.findall(r"(>=|<)([\d.]+)", rest))
    assert {"torch", "onnx", "onnxruntime"} <= {name for name, found in limits.items() if found}
    names, pythons, _ = zip(*combinations())
    assert len(set(names)) == len(names) and set(pythons) == {"3.10", "3.11", "3.12"}
    for name, python, pins in combinations():
        assert name.endswith(f"-{python}") and set(pins) == {"torch", "torchvision", "numpy", "onnxruntime", "onnx"}
        for package, version in pins.items():
            assert re.fullmatch(r"\d+\.\d+\.\*", version), f"{name}: {package} {version}"
            for sign, limit in limits.get(package, []):
                within = numbers(version) >= numbers(limit) if sign == ">=" else numbers(version) < numbers(limit)
                assert within, f"{name}: {package} {version} is outside of {sign}{limit}"


def test_the_tried_versions_are_documented():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    documented = {row[0].strip("`"): row[1:] for row in rows}
    assert set(documented) == {name for name, _, _ in combinations()}
    packages = ("torch", "torchvision", "numpy", "onnxruntime", "onnx")
    for name, python, pins in combinations():
        expected = [python, *(pins[package].removesuffix(".*") for package in packages)]
        for cell, version in zip(documented[name], expected):
            assert numbers(cell)[:2] == numbers(version), f"{name}: {cell} is not {version}"


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Python of an environment that has the wheel, and finds all else where this Python does."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, timeout=120)
    # A path of a .pth file comes after the environment's own packages, and the .pth files in it are not read: the
    # editable installation stays out of sight.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


@pytest.mark.slow
def test_the_commands_of_the_wheel(environment, methods, tmp_path):
    """In one process: ns-export-mobiler2l is installed, and ns-train lists the methods."""
    command = environment.with_name("ns-export-mobiler2l")
    assert command.read_text().startswith(f"#!{environment}\n") and os.access(command, os.X_OK)
    code = (
        "import runpy, sys\n"
        "sys.argv = ['ns-export-mobiler2l', '--help']\n"
        f"try: runpy.run_path({str(command)!r}, run_name='__main__')\n"
        "except SystemExit as end: print('END OF THE EXPORT', end.code or 0)\n"
        "import mobiler2l_ns.method_configs\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    if name.startswith('mobiler2l_ns') and module.__file__: print('FILE', module.__file__)\n"
        "from nerfstudio.scripts.train import entrypoint\n"
        "sys.argv = ['ns-train', '--help']\n"
        "entrypoint()\n"
    )
    done = subprocess.run(
        [str(environment), "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    export, end, listing = done.stdout.partition("END OF THE EXPORT 0\n")
    assert end and "--load-config" in export and "mobiler2l-teacher" not in export
    files = [line.removeprefix("FILE ") for line in done.stdout.splitlines() if line.startswith("FILE ")]
    assert len(files) > 20 and all(file.startswith(str(environment.parents[1])) for file in files), files
    listed = set(re.findall(r"^\W*((?:mobiler2l|r2l)[\w-]*)", listing, re.M))
    assert listed == methods and "mobiler2l-teacher" in listed, done.stdout[-3000:]
