"""The example notebook runs from the first cell to the last, at a tiny size, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from commands import parse
from documents import commands_in, completed
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "quickstart.ipynb"
TINY = {"RESOLUTION": 32, "NUM_PHOTOS": 8, "TEACHER_STEPS": 3, "STUDENT_STEPS": 8, "INITIAL_VIEWS": 2}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)
    assert NOTEBOOK.stat().st_size < 300_000


def test_its_commands_parse(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    commands = commands_in(text)
    assert [command[0] for command in commands] == ["ns-train", "ns-train", "ns-export-mobiler2l"]
    for command in commands:
        parse(completed(command))


def test_it_runs(notebook, tmp_path):
    """The cell of the sizes is followed by one with tiny sizes; the last cell's views are images of this size."""
    index = next(k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    sizes = {**TINY, "OUTPUT": str(tmp_path / "output")}
    for name in sizes:
        assert f"\n{name} = " in f"\n{notebook.cells[index].source}"
    tiny = "\n".join(f"{name} = {value!r}" for name, value in sizes.items())
    tiny += "\nfrom mobiler2l_ns.teacher import fast_nerfacto; fast_nerfacto.GRID_RESOLUTION = 32"
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(tiny))
    checks = "assert len(views) == 5 and all(view.shape == (32, 32, 3) for view in views)\nassert report['psnr']"
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    drawn = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
             if "image/png" in output.get("data", {})]  # fmt: skip
    assert len(drawn) == 4
    assert (tmp_path / "output" / "export" / "onnx" / "pipeline.onnx").is_file()
    assert list(NOTEBOOK.parent.iterdir()) == [NOTEBOOK]
