"""The documents against the code: commands, options, paths, links, dataparsers, methods, and the tables' form."""

import ast
import dataclasses
import importlib.util
import re
import shlex
import typing
from pathlib import Path

import pytest
import yaml
from commands import parse, parser_of
from documents import bash_lines, code_spans, commands_in, completed, without_code_blocks
from system_packages import needs_open3d

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FOR_NERFSTUDIO = ROOT / "docs" / "nerfstudio"
OTHER_TOOLS = {"--help", "--logdir", "--directory", "--bind"}  # of all commands, of tensorboard, of http.server
WITH_OPEN3D = ("ns-export", "ns-process-data")  # they import open3d, which needs system packages
NOT_PARSERS = {"ns-process-data", "ns-download-data"}
README_LINES, CELL_CHARACTERS = 90, 160  # a README that is read in two minutes, table cells of two lines


def name_of(document: Path) -> str:
    """A document's path in the repository, as the name of a test case."""
    return str(document.relative_to(ROOT))


@pytest.fixture(autouse=True)
def without_colmap(monkeypatch):
    """ns-process-data looks for COLMAP while it parses."""
    from nerfstudio.utils import install_checks

    for name in ("check_colmap_installed", "check_ffmpeg_installed"):
        monkeypatch.setattr(install_checks, name, lambda *args: None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_parses(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nerfstudio makes output folders while it parses
    for command in commands_in(document.read_text()):
        if command[0] not in WITH_OPEN3D:
            parse(completed(command))


@needs_open3d
@pytest.mark.parametrize("name", WITH_OPEN3D)
def test_every_command_with_open3d_parses(name):
    commands = [command for document in DOCUMENTS for command in commands_in(document.read_text())]
    found = [command for command in commands if command[0] == name]
    assert len(found) >= 4
    for command in found:
        parse(completed(command))


def test_commands_are_found():
    counts = {name_of(document): len(commands_in(document.read_text())) for document in DOCUMENTS}
    assert counts["README.md"] >= 5 and counts["docs/capture.md"] >= 12 and counts["docs/commands.md"] >= 7
    assert counts["docs/lens-studio.md"] >= 2 and counts["docs/nerfstudio/mobiler2l.md"] >= 4


@pytest.mark.parametrize("command", ["ns-train mobiler2l --pipeline.datamanager.no-such-option 1", "ns-train no-method",
                                     "ns-viewer", "ns-export-mobiler2l --load-config x --output-dir y --targets z",
                                     "ns-nothing"])  # fmt: skip
def test_a_wrong_command_is_found(command):
    with pytest.raises(AssertionError):
        parse(shlex.split(command))


def fields(config, prefix="--") -> set:
    """Option names of a config, nested ones included."""
    names = set()
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name, None), prefix + field.name.replace("_", "-")
        names.add(name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names |= fields(value, name + ".")
    return names


def dataclasses_in(annotation) -> list:
    """The dataclasses of a union of subcommands, however deep annotations wrap them."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in dataclasses_in(part)]


def script_options(path: Path) -> set:
    """Option names of a script that is not imported: of its argparse parser, the fields of its classes, and the
    arguments of the functions that tyro calls."""
    source = path.read_text()
    nodes = ast.parse(source).body
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    names = [field.target.id for node in classes for field in node.body if isinstance(field, ast.AnnAssign)]
    called = re.findall(r"tyro\.cli\((\w+)", source)
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name in called]
    names += [argument.arg for function in functions for argument in function.args.args]
    return {"--" + name.replace("_", "-") for name in names} | set(re.findall(r'"(--[a-z-]+)"', source))


@pytest.fixture(scope="module")
def known_options() -> set:
    """Option names of our methods, of nerfstudio's commands, of an export, and of the scripts."""
    from nerfstudio.configs.dataparser_configs import all_dataparsers

    from mobiler2l_ns import method_configs
    from mobiler2l_ns.export.command import ExportMobileR2L
    from mobiler2l_ns.process_data.command import ProcessMobileR2L
    from mobiler2l_ns.pruning.command import PruneMobileR2L

    known = set(OTHER_TOOLS) | fields(ExportMobileR2L) | fields(PruneMobileR2L) | fields(ProcessMobileR2L)
    for name in method_configs.__all__:
        known |= fields(getattr(method_configs, name).config)
    for parser in all_dataparsers.values():
        known |= fields(parser)
    for script in (ROOT / "scripts").rglob("*.py"):
        known |= script_options(script)
    for script in (ROOT / "scripts").rglob("*.sh"):
        known |= set(re.findall(r"^ +(--[a-z-]+)\)", script.read_text(), re.MULTILINE))  # of a case
    nerfstudio = Path(importlib.util.find_spec("nerfstudio").origin).parent
    of_commands = script_options(nerfstudio / "scripts" / "exporter.py")
    for source in [nerfstudio / "scripts" / "process_data.py", *(nerfstudio / "process_data").glob("*.py")]:
        of_commands |= script_options(source)
    for command in dataclasses_in(parser_of("ns-render")):
        of_commands |= fields(command)
    return known | of_commands | {option.replace("--", "--no-", 1) for option in of_commands}


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name_of)
def test_every_option_is_one(document, known_options):
    """Also options that stand alone in a table or a sentence. The changelog names those of earlier versions."""
    for code in code_spans(document.read_text()):
        if not code.startswith("ns-"):  # those are parsed above
            assert set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", code)) <= known_options, code


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_script_call_is_one(document):
    text = document.read_text()
    for line in [*bash_lines(text), *code_spans(text)]:
        if re.match(r"(python|bash) scripts/", line):
            path, *arguments = shlex.split(line, comments=True)[1:]
            assert (ROOT / path).is_file(), line
            options = {word for word in arguments if word.startswith("--")}
            assert path.endswith(".sh") or options <= script_options(ROOT / path), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_path_and_link_exists(document):
    text = document.read_text()
    prose = re.sub(r"`[^`\n]*`", "", without_code_blocks(text))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", prose):
        if not target.startswith("http"):
            path = document.parent / target if target else document
            assert path.exists(), f"link to {target}"
            assert not anchor or anchor[1:] in anchors_in(path), f"link to {target}{anchor}"
    if document.parent == FOR_NERFSTUDIO or document.name == "CHANGELOG.md":
        return  # they name paths of nerfstudio's repository and of earlier versions
    named = r"(?<![\w./-])(?:scripts|tests|docs|mobiler2l_ns|method_configs)/[\w./-]*(?![\w./<*-])"
    for path in re.findall(named, "\n".join([*code_spans(text), *bash_lines(text)])):
        assert (ROOT / path).exists(), path


def anchors_in(document: Path) -> set:
    """The link targets that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(document.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- dataparsers and methods ------------------------------------------------------------------------------------------


def parsers_named_in(text: str) -> set:
    """Everything in a text that is written like a dataparser's name."""
    return set(re.findall(r"(?<![\w/-])[a-z0-9]+(?:-[a-z0-9]+)*-data\b(?![\w/-])", text)) - NOT_PARSERS


def test_every_dataparser_is_one():
    """In the documents, and in the code's messages and defaults."""
    from nerfstudio.configs.dataparser_configs import all_dataparsers

    assert parsers_named_in("`colmap-data`, or instantngp-data.") == {"colmap-data", "instantngp-data"}
    sources = [*DOCUMENTS, *(ROOT / "mobiler2l_ns").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    for source in sources:
        assert parsers_named_in(source.read_text()) <= set(all_dataparsers), source
    assert "`colmap`" in (ROOT / "README.md").read_text() and "colmap" in all_dataparsers


def test_methods_are_listed():
    """The page of commands and both files for nerfstudio name every method and no other."""
    from mobiler2l_ns import method_configs

    methods = {getattr(method_configs, name).config.method_name for name in method_configs.__all__}
    for document in (ROOT / "docs" / "commands.md", FOR_NERFSTUDIO / "mobiler2l.md"):
        assert set(re.findall(r"^\| `([a-z0-9-]+)` +\|", document.read_text(), re.M)) & methods == methods
    spec = importlib.util.spec_from_file_location("external_method", FOR_NERFSTUDIO / "external_method.py")
    entry = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entry)
    added = entry.external_methods.pop()
    assert {slug for slug, _ in added.configurations} == methods and "MobileR2L" in added.instructions


# -- form -------------------------------------------------------------------------------------------------------------


def table_problems(text: str) -> list:
    """Lines that a table takes in although they are no rows, rows of another length, and headers without a rule."""
    problems, columns, previous = [], 0, ""
    for line in without_code_blocks(text).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        if line.lstrip().startswith("|"):
            rule = re.fullmatch(r"\s*\|(\s*:?-+:?\s*\|)+", line)
            if columns and cells != columns or not columns and previous.strip() and not rule:
                problems.append(line)
            columns = cells
        elif columns:
            if line.strip():
                problems.append(line)
            columns = 0
        previous = line
    return problems


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_tables_are_whole(document):
    assert table_problems(document.read_text()) == []


def test_a_broken_table_is_found():
    table = "Text.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert table_problems(table + "\nA sentence.") == []
    assert table_problems(table + "A sentence.") == ["A sentence."]
    assert table_problems(table + "| 1 |\n") == ["| 1 |"]
    assert table_problems("Text.\n| a | b |\n|---|---|\n") == ["| a | b |"]


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES
    for row in (line for line in lines if line.startswith("|")):
        assert max(len(cell.strip()) for cell in row.split("|")) <= CELL_CHARACTERS, row


def test_hooks_have_the_pinned_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = {pin for hook in hooks for pin in hook.get("additional_dependencies", [])}
    assert len(pins) == 1 and f'"{pins.pop()}"' in (ROOT / "pyproject.toml").read_text()


def message(node) -> str:
    """A message as docs/errors.md has it: with … for what the code fills in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    assert isinstance(node, (ast.BinOp, ast.Name, ast.FormattedValue)), ast.dump(node)
    return message(node.left) + message(node.right) if isinstance(node, ast.BinOp) else "…"


def test_every_error_is_documented():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "mobiler2l_ns").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    kinds = {
        node.name for node in nodes
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "UserError" for base in node.bases)
    }  # fmt: skip
    assert {"UntrustedFile", "Diverged"} <= kinds
    calls = (node for node in nodes if isinstance(node, ast.Call))
    raised = {message(call.args[0]) for call in calls if getattr(call.func, "id", "") in {"UserError", *kinds}}
    rows = [line.split(" | ") for line in (ROOT / "docs" / "errors.md").read_text().splitlines() if line[:2] == "| "]
    documented = {row[0].removeprefix("| ") for row in rows} - {"message"}
    assert len(raised) >= 70 and documented == raised
