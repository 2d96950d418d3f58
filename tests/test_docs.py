"""Every ns-* command in the documents parses, and every option in them is one."""

import contextlib
import dataclasses
import io
import re
import shlex
import typing
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {"PHOTOS": "photos", "RUN": "outputs/run", "TIME": "2026-01-01", "DIR": "folder", "HOST": "host",
                "PORT": "29500", "METHOD": "mobiler2l", "SCENE": "mine"}  # fmt: skip
OTHER_TOOLS = {"--help", "--logdir", "--directory"}  # everybody's, tensorboard's, http.server's


@pytest.fixture(autouse=True)
def without_colmap(monkeypatch):
    """ns-process-data looks for COLMAP while it parses."""
    from nerfstudio.utils import install_checks

    for name in ("check_colmap_installed", "check_ffmpeg_installed"):
        monkeypatch.setattr(install_checks, name, lambda *args: None)


def parser_of(command: str):
    """What a command hands to tyro."""
    if command == "ns-train":
        from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion as target
    elif command == "ns-process-data":
        from nerfstudio.scripts.process_data import Commands as target
    elif command == "ns-eval":
        from nerfstudio.scripts.eval import ComputePSNR

        target = tyro.conf.FlagConversionOff[ComputePSNR]
    elif command == "ns-viewer":
        from nerfstudio.scripts.viewer.run_viewer import RunViewer

        target = tyro.conf.FlagConversionOff[RunViewer]
    elif command == "ns-render":
        from nerfstudio.scripts.render import Commands

        target = tyro.conf.FlagConversionOff[Commands]
    elif command == "ns-export":
        from nerfstudio.scripts.exporter import Commands

        target = tyro.conf.FlagConversionOff[Commands]
    elif command == "ns-export-mobiler2l":
        from mobiler2l_ns.export.command import ExportMobileR2L

        target = tyro.conf.FlagConversionOff[ExportMobileR2L]
    else:
        raise AssertionError(f"{command} is no command that the documents may name")
    return target


def parse(command: list):
    """The config that a command line stands for; an AssertionError with tyro's words where it stands for none."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(parser_of(command[0]), args=command[1:])
    except SystemExit:
        raise AssertionError(f"{shlex.join(command)}\n{said.getvalue()}") from None


def commands_in(text: str) -> list:
    """The ns-* command lines of a document: lines of bash blocks, and code within a sentence that has options."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    lines += [code for code in re.findall(r"`([^`\n]+)`", prose) if code.startswith("ns-") and " " in code]
    words = [shlex.split(re.sub("|".join(PLACEHOLDERS), lambda m: PLACEHOLDERS[m[0]], line), comments=True)
             for line in lines]  # fmt: skip
    return [line for line in words if line and line[0].startswith("ns-")]


def completed(command: list) -> list:
    """A command out of a sentence with what it needs to run at all."""
    needed = {
        "ns-process-data": ["--data", "photos", "--output-dir", "data/mine"],
        "ns-viewer": ["--load-config", "config.yml"],
        "ns-eval": ["--load-config", "config.yml"],
        "ns-render": ["--load-config", "config.yml"],
        "ns-export": ["--load-config", "config.yml", "--output-dir", "exports/mine"],
        "ns-export-mobiler2l": ["--load-config", "config.yml", "--output-dir", "exports/mine"],
    }.get(command[0], [])
    pairs = zip(needed[::2], needed[1::2])
    return command + [word for name, value in pairs if name not in command for word in (name, value)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_parses(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nerfstudio makes output folders while it parses
    for command in commands_in(document.read_text()):
        parse(completed(command))


def test_commands_are_found():
    counts = {document.name: len(commands_in(document.read_text())) for document in DOCUMENTS}
    assert counts["README.md"] >= 5 and counts["capture.md"] >= 12 and counts["lens-studio.md"] >= 2


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


def test_every_option_is_one():
    """Also options that stand alone in a table or a sentence: of our methods, of an export, of scripts."""
    import bench_distillation
    import bench_export
    from nerfstudio.configs.dataparser_configs import all_dataparsers
    from nerfstudio.scripts.process_data import Commands

    from mobiler2l_ns import method_configs
    from mobiler2l_ns.export.command import ExportMobileR2L

    known = set(OTHER_TOOLS)
    for name in method_configs.__all__:
        known |= fields(getattr(method_configs, name).config)
    for parser in all_dataparsers.values():
        known |= fields(parser)
    known |= fields(ExportMobileR2L)
    for options in (bench_distillation.Options, bench_export.Options):
        known |= fields(options)
    for script in (ROOT / "scripts").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
    for command in (Commands, parser_of("ns-render"), parser_of("ns-export")):
        for options in map(fields, dataclasses_in(command)):
            known |= options | {option.replace("--", "--no-", 1) for option in options}
    for document in DOCUMENTS:
        text = document.read_text()
        alone = re.sub(r"```.*?```", "", text, flags=re.S)
        for code in re.findall(r"`([^`\n]+)`", alone):
            if code.startswith("ns-"):
                continue  # parsed above
            for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code):
                assert option in known, f"{document.name}: {option}"
