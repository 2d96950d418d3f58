"""The output folder of an export: what is replaced, what is never deleted, and what a failure leaves behind."""

import errno
from pathlib import Path

import pytest
from builders import write_run
from export_builders import corrupt, export_run

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import command as export
from mobiler2l_ns.export.output_folder import files_of


@pytest.fixture
def config_path(tmp_path):
    return write_run(tmp_path / "run")


def contents(folder):
    """The bytes of all files below a folder."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def test_an_export_is_replaced_on_request_only(config_path, tmp_path):
    output_dir = tmp_path / "out"
    output_dir.mkdir()  # empty: may be used
    export_run(config_path, output_dir)
    before = contents(output_dir)
    with pytest.raises(UserError, match="out holds an export: pass another --output-dir, or --overwrite True"):
        export_run(config_path, output_dir)
    assert contents(output_dir) == before
    other = write_run(tmp_path / "other")
    assert export_run(other, output_dir, targets=("onnx",), overwrite=True)["run"]["config"] == str(other)
    assert {path.name for path in output_dir.iterdir()} == {"onnx", "report.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "run"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("report", [None, "{}", "[]", "no json", '{"run": {"config": "config.yml"}}'])
def test_a_folder_that_is_no_export_is_never_replaced(config_path, tmp_path, overwrite, report):
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    (home / "work" / "thesis.tex").write_text("mine")
    if report is not None:
        (home / "report.json").write_text(report)
    before = contents(home)
    with pytest.raises(UserError, match="home is not empty and holds no export: pass another --output-dir"):
        export_run(config_path, home, overwrite=overwrite)
    assert contents(home) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_beside_an_export_are_never_deleted(config_path, tmp_path, overwrite):
    output_dir = tmp_path / "out"
    export_run(config_path, output_dir)
    (output_dir / "onnx" / "notes.txt").write_text("mine")
    before = contents(output_dir)
    with pytest.raises(UserError, match=r"files that are not part of an export \(onnx/notes.txt\)"):
        export_run(config_path, output_dir, overwrite=overwrite)
    assert contents(output_dir) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), None])
def test_failure_leaves_nothing_behind(config_path, tmp_path, monkeypatch, error):
    def fail(model, folder, *options):
        write_snap_files(model, folder, *options)
        if error is not None:
            raise error
        corrupt(folder / "lego_SnapGELU.onnx")

    write_snap_files = export.write_snap_files
    export_run(config_path, tmp_path / "kept", targets=("snap",))
    before = contents(tmp_path / "kept")
    monkeypatch.setattr(export, "write_snap_files", fail)
    expected, match = {
        KeyboardInterrupt: (KeyboardInterrupt, None),
        OSError: (UserError, "No space left"),
        type(None): (UserError, "snap/lego_SnapGELU.onnx differs"),
    }[type(error)]
    for target in (tmp_path / "kept", tmp_path / "new" / "deep"):
        with pytest.raises(expected, match=match):
            export_run(config_path, target, targets=("snap",), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "run"]
    assert contents(tmp_path / "kept") == before


def test_a_failed_renaming_restores_the_previous_export(config_path, tmp_path, monkeypatch):
    def rename(path, target):
        if path.name.endswith(".writing"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(path, target)

    export_run(config_path, tmp_path / "kept", targets=("snap",))
    before, real = contents(tmp_path / "kept"), Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="kept cannot be written .*cross-device"):
        export_run(config_path, tmp_path / "kept", targets=("snap",), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "run"]
    assert contents(tmp_path / "kept") == before


def test_output_paths_that_cannot_be_written(config_path, tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"):
            export_run(config_path, target)
    assert (tmp_path / "file").read_text() == "x"
