"""The ns-* commands that documents contain."""

import re
import shlex

PLACEHOLDERS = {"PHOTOS": "photos", "RUN": "outputs/run", "TIME": "2026-01-01", "DIR": "folder", "HOST": "host",
                "PORT": "29500", "METHOD": "mobiler2l", "SCENE": "mine"}  # fmt: skip


def without_code_blocks(text: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.S)


def bash_lines(text: str) -> list:
    """The lines of a document's bash blocks; a line that ends in a backslash and its next one are one."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]


def code_spans(text: str) -> list:
    """The code within sentences and tables of a document."""
    return re.findall(r"`([^`\n]+)`", without_code_blocks(text))


def commands_in(text: str) -> list:
    """The ns-* command lines of a document: lines of bash blocks, and code within a sentence that has options."""
    lines = bash_lines(text) + [code for code in code_spans(text) if code.startswith("ns-") and " " in code]
    words = [shlex.split(re.sub("|".join(PLACEHOLDERS), lambda m: PLACEHOLDERS[m[0]], line), comments=True)
             for line in lines]  # fmt: skip
    return [line for line in words if line and line[0].startswith("ns-") and line != ["ns-install-cli"]]


def completed(command: list) -> list:
    """A command out of a sentence with what it needs to run at all."""
    needed = {
        "ns-process-data": ["--data", "photos", "--output-dir", "data/mine"],
        "ns-process-mobiler2l": ["--data", "photos", "--output-dir", "data/mine"],
        "ns-viewer": ["--load-config", "config.yml"],
        "ns-eval": ["--load-config", "config.yml"],
        "ns-render": ["--load-config", "config.yml"],
        "ns-export": ["--load-config", "config.yml", "--output-dir", "exports/mine"],
        "ns-prune-mobiler2l": ["--load-config", "config.yml"],
        "ns-export-mobiler2l": ["--load-config", "config.yml", "--output-dir", "exports/mine"],
    }.get(command[0], [])
    pairs = zip(needed[::2], needed[1::2])
    return command + [word for name, value in pairs if name not in command for word in (name, value)]
