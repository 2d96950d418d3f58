"""``ns-export-mobiler2l``: a trained student as verified ONNX files with a report. All or nothing is written.

report.json lists the files beside it, so that a later export of the same run knows what it may replace.
"""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Set, Tuple

import torch
import tyro

from mobiler2l_ns.errors import UserError

REPORT = "report.json"
_NUM_VERIFIED_POSES = 2


@dataclass
class ExportMobileR2L:
    """Exports a trained student as ONNX files, checks each against torch, and compares pictures with the photos."""

    load_config: Path
    """The student's config.yml."""
    output_dir: Path
    """Folder for the files; made if it is not there."""
    num_views: int = 4
    """Photos to render again and compare; 0 skips that and needs no data set."""
    overwrite: bool = False
    """Replace what the folder holds of another export, and write beside files that are not ours."""

    def main(self) -> None:
        """Runs the export and says what to do next."""
        export_run(self.load_config, self.output_dir, self.num_views, self.overwrite)
        from nerfstudio.utils.rich_utils import CONSOLE

        CONSOLE.print(
            f"Next: look at the student with `ns-viewer --load-config {self.load_config}`. Render it in Python with "
            f"`mobiler2l_ns.runtime.Renderer('{self.output_dir}').render(c2w)`, with numpy and onnxruntime alone. "
            "For a Lens, import Sampler.onnx, Embedder.onnx and MobileR2L_SnapGELU.onnx, and paste the numbers of "
            "intrinsics.json into the script."
        )


def export_run(load_config: Path, output_dir: Path, num_views: int = 4, overwrite: bool = False) -> dict:
    """Writes the ONNX files of a run, verified, with intrinsics.json and report.json.

    Args:
        load_config: A student's config.yml, or its folder.
        output_dir: Where the files go. Until they are verified, nothing in it changes.
        num_views: Photos to compare with.
        overwrite: Allow output_dir to hold something other than an earlier export of the same run.

    Returns:
        The content of report.json.

    Raises:
        UserError: The run is no trained student or too large, a file differs from it, or output_dir cannot be written.
    """
    from mobiler2l_ns.onnx_files import check_size, write_onnx_files
    from mobiler2l_ns.verification import check_parity, print_table, random_poses, verify

    config_path = (load_config / "config.yml" if load_config.is_dir() else load_config).resolve()
    output_dir = output_dir.expanduser().resolve()  # beside the real folder: renames must not cross disks
    model, run = _load_student(config_path)
    check_size(model)
    try:
        ours = _replaceable_files(output_dir, config_path, overwrite)
        with _staging_folder(output_dir) as staging:
            write_onnx_files(model, staging)
            poses = random_poses(float(model.sampler.near), float(model.sampler.far), _NUM_VERIFIED_POSES)
            checked = verify(model, staging, poses)
            check_parity(checked, output_dir)
            report = {**_report(model, run, checked, config_path), **_pictures(config_path, staging, num_views)}
            report["files"] = sorted({path.name for path in staging.iterdir()} | {REPORT})
            (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
            _move_into_place(staging, output_dir, ours)
    except OSError as error:
        raise UserError(f"{output_dir} cannot be written ({error}): pass another --output-dir.") from None
    print_table(report)
    return report


def entrypoint() -> None:
    """The command ns-export-mobiler2l."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(tyro.conf.FlagConversionOff[ExportMobileR2L]).main()


def _load_student(config_path: Path) -> Tuple[torch.nn.Module, dict]:
    from mobiler2l_ns.checkpoints import load_model, read_config
    from mobiler2l_ns.model import MobileR2LModelConfig

    config = read_config(config_path)
    if not isinstance(config.pipeline.model, MobileR2LModelConfig):
        raise UserError(
            f"{config_path} is a {config.method_name} run, not a student: pass the config.yml of a run of "
            "ns-train mobiler2l."
        )
    model, step = load_model(config_path, "cpu")
    sampler = model.sampler
    has_camera = bool((sampler.grid > 0).all()) and float(sampler.focal) > 0 and sampler.near < sampler.far
    if not has_camera:
        raise UserError(f"{config_path} has a student that never saw a camera: train it first with ns-train.")
    # Batch norm's running statistics are no parameters but travel into the files too.
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise UserError(f"{config_path} has weights that are NaN or infinite: train again with smaller learning rates.")
    return model, {"config": str(config_path), "step": step, "method": config.method_name}


def _report(model, run: dict, checked: dict, config_path: Path) -> dict:
    from mobiler2l_ns.network import count_macs, count_parameters

    files, chain = checked["files"], checked["chain"]
    (h, w), (height, width) = model.sampler.grid.tolist(), model.size

    def column(key: str) -> dict:
        return {name: entry[key] for name, entry in files.items()}

    path = config_path.parent / "distillation.json"
    distillation = json.loads(path.read_text()) if path.is_file() else {}
    return {
        "run": run,
        "image": {"height": height, "width": width},
        "grid": {"height": h, "width": w},
        "params": count_parameters(model.network),
        "gmac": count_macs(model.network, h, w) / 1e9,
        "parity": {
            "max_abs": column("max_abs"),
            "mean_abs": column("mean_abs"),
            "tolerance": {**column("tolerance"), "chain": chain["tolerance"]},
            "chain": {layout: chain[layout] for layout in ("nchw", "hwc")},
        },
        "size_bytes": column("size_bytes"),
        "latency_ms": column("latency_ms"),
        "operators": column("operators"),
        "pool": distillation.get("pool"),
        "finetuning": distillation.get("finetuning"),
    }


def _pictures(config_path: Path, folder: Path, num_views: int) -> dict:
    """Scores of the exported files against the run's photos; empty where the data set is out of reach."""
    if num_views <= 0:
        return {}
    from mobiler2l_ns.comparison import compare

    try:
        return compare(config_path, folder, num_views)
    except UserError as error:
        print(f"No comparison with photos: {error}")
        return {}


def _replaceable_files(output_dir: Path, config_path: Path, overwrite: bool) -> Set[str]:
    """Names in output_dir that an earlier export wrote; refuses a folder with anything that is not this run's."""
    if not output_dir.exists():
        return set()
    if not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file: pass a folder as --output-dir.")
    present = {path.name for path in output_dir.iterdir()}
    earlier = _earlier_report(output_dir)
    ours = present & set(earlier["files"]) if earlier else set()
    same_run = earlier is not None and earlier["run"]["config"] == str(config_path)
    if not overwrite and present and not (same_run and present == ours):
        what = f"an export of {earlier['run']['config']}" if earlier and not same_run else "files of yours"
        raise UserError(f"{output_dir} holds {what}: pass another --output-dir, or --overwrite True.")
    return ours


def _earlier_report(folder: Path) -> Optional[dict]:
    """The report.json in a folder, or None where it is missing or not ours."""
    try:
        report = json.loads((folder / REPORT).read_text())
        return {"run": {"config": str(report["run"]["config"])}, "files": [str(name) for name in report["files"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _staging_folder(output_dir: Path) -> Iterator[Path]:
    """An empty folder beside output_dir, gone afterwards, as are parents that were made for nothing."""
    missing = [parent for parent in output_dir.parents if not parent.exists()]
    staging = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.writing")
    try:
        staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _move_into_place(staging: Path, output_dir: Path, ours: Set[str]) -> None:
    """Makes the staging folder the output folder; files there that no export wrote stay, unless a name clashes."""
    if not output_dir.exists():
        staging.rename(output_dir)
        return
    before = staging.with_name(staging.name + ".before")
    output_dir.rename(before)
    try:
        staging.rename(output_dir)
    except BaseException:
        before.rename(output_dir)
        raise
    for path in before.iterdir():
        if path.name not in ours and not (output_dir / path.name).exists():
            path.rename(output_dir / path.name)
    shutil.rmtree(before)
