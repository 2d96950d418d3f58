"""What a run prints."""

import contextlib
import io
import re

import pytest
from nerfstudio.configs import base_config
from nerfstudio.utils import writer
from rich.console import Console

from mobiler2l_ns.training import progress


def screen(text: str) -> list:
    """The lines that a terminal shows after ``text``: the cursor goes up and back, and new text covers old."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[\n\r]|[^\x1b\n\r]+", text):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b"):
            row -= int(token[2:-1]) if token.endswith("A") else 0
        else:
            lines[row] = lines[row][:column] + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_stay_beside_nerfstudios_table(monkeypatch, terminal):
    """Without room below it the line would be gone after the table's next row."""
    output = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=output, force_terminal=terminal, width=120))
    table = writer.LocalWriter(base_config.LocalWriterConfig(enable=True, max_log_size=3))
    monkeypatch.setattr(writer, "EVENT_WRITERS", [table])
    monkeypatch.setattr(writer, "GLOBAL_BUFFER", {"max_iter": 100, "steps_per_log": 10, "events": {}})
    with contextlib.redirect_stdout(output):
        progress.log_line("before the first row")
        for step in range(0, 100, 10):
            writer.GLOBAL_BUFFER["step"] = step
            monkeypatch.setattr(writer, "EVENT_STORAGE", [{"name": "Test PSNR", "event": 1.0, "step": step}])
            table.write_stats_log(step)
            if step in (10, 60):
                progress.log_line(f"a line after step {step}")
    text = output.getvalue()
    if terminal:
        lines = screen(text)
        assert "before the first row" in lines[0]
        assert "a line after step 10" in lines and "a line after step 60" in lines
        assert [line.split()[0] for line in lines[-3:]] == ["70", "80", "90"]
    else:
        assert "a line after step 60\n" in text and "\n\n\n" not in text


def test_a_bar_names_what_is_being_done(monkeypatch):
    for terminal in (True, False):
        output = io.StringIO()
        monkeypatch.setattr(progress, "CONSOLE", Console(file=output, force_terminal=terminal, width=120))
        with progress.stages(2) as begin:
            begin("Writing onnx")
            begin("Verifying onnx")
        text = output.getvalue()
        if terminal:
            assert "Writing onnx" in text and "0/2" in text and "Verifying onnx" in text and "1/2" in text
        else:
            assert text == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations(seconds, said):
    assert progress.duration(seconds) == said


def test_progress_without_a_terminal_is_a_line_for_each_tenth(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=output, force_terminal=False, width=120))
    with progress.progress_of("photos", 40) as advance:
        for done in (1, 3, 4, 5, 12, 40):
            advance(done)
    with progress.progress_of("frames", 0) as advance:  # the total is not known
        advance(7)
    assert output.getvalue().splitlines() == [
        "photos: 4 of 40 (10.00%)", "photos: 12 of 40 (30.00%)", "photos: 40 of 40 (100.00%)",
    ]  # fmt: skip
