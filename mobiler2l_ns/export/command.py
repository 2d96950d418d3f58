"""The command ``ns-export-mobiler2l``: writes a trained student as verified files, with a report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Literal, NamedTuple, Optional, Tuple, cast

import tyro
from nerfstudio.utils.rich_utils import CONSOLE

from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.errors import UserError, explain_write_errors
from mobiler2l_ns.export.comparison import Comparison, compare
from mobiler2l_ns.export.coreml_files import check_coreml, coreml_name, import_coremltools, write_coreml_files
from mobiler2l_ns.export.onnx_files import OPSETS, check_size, write_onnx_files
from mobiler2l_ns.export.output_folder import (
    REPORT,
    check_output_dir,
    files_of,
    move_into_place,
    staging_folder,
)
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES
from mobiler2l_ns.export.precision import INT8_OPSET, Precision
from mobiler2l_ns.export.report import print_table, report_dict, training_record
from mobiler2l_ns.export.snap_files import check_budget, lens_bytes, write_snap_files
from mobiler2l_ns.export.snap_operators import backend_table
from mobiler2l_ns.export.truth import Truth, compute_truth
from mobiler2l_ns.export.verification import (
    FileFigures,
    check_parity,
    verify_graph,
    verify_onnx,
    verify_snap,
)
from mobiler2l_ns.export.web_files import MODEL, check_web_options, write_web_files
from mobiler2l_ns.model import MobileR2LModel, MobileR2LModelConfig
from mobiler2l_ns.optional import require
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.student.network import Outputs
from mobiler2l_ns.student.viewing_range import viewing_range
from mobiler2l_ns.training.progress import stages

if TYPE_CHECKING:
    import nerfstudio.engine.trainer

Target = Literal["onnx", "snap", "web", "coreml"]
COMPARISON = "comparison.png"
MAX_PRECISION_LOSS = 0.3  # dB of PSNR against photos; a larger loss by fp16 or int8 is reported
_NUM_VERIFIED_POSES = 2


class TrainedStudent(NamedTuple):
    """A student of a finished or running training."""

    config: "nerfstudio.engine.trainer.TrainerConfig"
    model: MobileR2LModel
    """On the CPU, in eval mode."""
    step: int
    """Training step of the weights."""


@dataclass
class ExportMobileR2L:
    """Exports a trained student, compares each file with torch, and compares renders with held-out photos."""

    load_config: Path
    """config.yml of the student's run, or the folder that has it."""
    output_dir: Path
    """Folder for the files, with a folder for each target. It must be empty or missing, see --overwrite."""
    targets: Tuple[Target, ...] = ("onnx", "snap")
    """onnx: files for onnxruntime and other ONNX runtimes.
    snap: files for Lens Studio.
    web: a page that renders in the browser.
    coreml: an .mlpackage for iPhone and Mac; needs coremltools."""
    precision: Precision = "fp32"
    """Number format of the network in onnx/pipeline.onnx and in the web page.
    int8 is calibrated on poses of the capture's range; the web page does not have it."""
    outputs: Outputs = "rgb"
    """Outputs of the files in onnx, snap and coreml; the web page has colours only.
    rgb: colours. rgba: colours and alpha. rgbad: colours, alpha and depth."""
    opset: int = 20
    """ONNX opset of onnx/pipeline.onnx, 11 to 20. The web page's file has 20, all other ONNX files have 11."""
    ort_dist: Optional[Path] = None
    """The dist folder of the npm package onnxruntime-web, copied into the web page so that it works offline."""
    num_views: int = 4
    """Number of held-out photos to render and compare. 0: no comparison, and no data set is needed."""
    overwrite: bool = False
    """Replace the export in output_dir. A folder with any other file in it is never replaced."""

    def main(self) -> None:
        """Exports, and prints how to use the files."""
        self.export()
        hints = [f"Next: look at the student with `ns-viewer --load-config {self.load_config}`."]
        hints += [_HINTS[target].format(folder=self.output_dir / target) for target in self.targets]
        CONSOLE.print("\n".join(hints))

    def export(self, student: Optional[Tuple[MobileR2LModel, int]] = None) -> Dict[str, object]:
        """Writes and verifies all files. output_dir changes only after every file has passed.

        Args:
            student: The run's model on the CPU in eval mode, and its step. None: the newest checkpoint is loaded.

        Returns:
            The content of report.json.

        Raises:
            UserError: The run is not a trained student, is too large, lacks an output or has a damaged record; an
                option is wrong; a file differs from torch; or output_dir cannot be written.
        """
        config_path = self.load_config / "config.yml" if self.load_config.is_dir() else self.load_config
        config_path = config_path.resolve()
        # Resolved, so that the staging folder is on the same disk and can be renamed.
        output_dir = self.output_dir.expanduser().resolve()
        self._check_options()
        config, model, step = load_student(config_path, student)
        self._check_student(model, config_path)
        record = training_record(config_path)
        check_output_dir(output_dir, self.overwrite)
        with staging_folder(output_dir) as staging:
            figures = self._write_and_verify(model, config.experiment_name or "scene", staging, output_dir)
            check_parity(figures, output_dir)
            report = report_dict(config_path, config.method_name, step, model, figures, record)
            comparison = self._compare(config, model, staging)
            if comparison is not None:
                report.update(comparison.to_dict())
            with explain_write_errors(output_dir):
                if comparison is not None:
                    comparison.sheet.save(staging / COMPARISON)
                report["files"] = sorted(files_of(staging) | {REPORT})
                (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
                move_into_place(staging, output_dir)
        print_table(model, figures)
        return report

    def _check_options(self) -> None:
        if not self.targets:
            raise UserError("there is nothing to export: name at least one of onnx, snap, web and coreml as --targets.")
        if self.opset not in OPSETS:
            raise UserError(f"--opset {self.opset} cannot be written: pass one from {OPSETS[0]} to {OPSETS[-1]}.")
        if self.precision == "int8" and self.opset < INT8_OPSET:
            raise UserError(f"--opset {self.opset} has no int8 for each channel: pass --opset {INT8_OPSET} or higher.")
        if set(self.targets) - {"coreml"}:
            for package in ("onnx", "onnxruntime", "ml_dtypes", "onnxslim"):  # ml_dtypes: for onnxslim and int8
                require(package)
        if "coreml" in self.targets:
            import_coremltools()
        if "web" in self.targets:
            check_web_options(self.precision, self.ort_dist)
        elif self.ort_dist is not None:
            raise UserError("--ort-dist is for the web page: add web to --targets.")

    def _check_student(self, model: MobileR2LModel, config_path: Path) -> None:
        check_size(model)
        if len(self.outputs) > model.network.config.out_channels:
            missing = " and ".join(OUTPUT_NAMES[self.outputs][1:])
            raise UserError(f"{config_path} has a student without {missing}: pass --outputs rgb.")

    def _write_and_verify(
        self, model: MobileR2LModel, scene: str, staging: Path, output_dir: Path
    ) -> Dict[str, FileFigures]:
        """Fills the staging folder and returns the figures of each file, by its path in the folder."""
        targets, figures = dict.fromkeys(self.targets), {}
        with stages(1 + 2 * len(targets)) as begin:
            begin("Rendering in torch for the comparison")
            truth = compute_truth(model, viewing_range(model).sample(_NUM_VERIFIED_POSES, seed=1))
            for target in targets:
                folder = staging / target
                begin(f"Writing {target}")
                with explain_write_errors(output_dir):
                    folder.mkdir()
                    self._write(target, model, folder, scene)
                begin(f"Verifying {target}")
                found = self._verify(target, model, truth, folder, scene)
                figures.update({f"{target}/{name}": file for name, file in found.items()})
        return figures

    def _write(self, target: Target, model: MobileR2LModel, folder: Path, scene: str) -> None:
        if target == "onnx":
            write_onnx_files(model, folder, self.outputs, self.precision, self.opset)
        elif target == "snap":
            write_snap_files(model, folder, scene, self.outputs)
        elif target == "web":
            write_web_files(model, folder, scene, self.precision, self.ort_dist)
        else:
            write_coreml_files(model, folder, scene, self.outputs)

    def _verify(
        self, target: Target, model: MobileR2LModel, truth: Truth, folder: Path, scene: str
    ) -> Dict[str, FileFigures]:
        """Figures by the file's name in the target's folder."""
        if target == "onnx":
            return verify_onnx(model, truth, folder, self.outputs, self.precision)
        if target == "snap":
            figures = verify_snap(model, truth, folder, scene, self.outputs)
            CONSOLE.print(backend_table(sorted(folder.glob("*.onnx"))))
            if warning := check_budget(lens_bytes(folder)):
                CONSOLE.print(warning)
            return figures
        if target == "web":
            return {MODEL: verify_graph(model, truth, folder / MODEL, self.precision)}
        package = folder / coreml_name(scene)
        check_coreml(package, model, self.outputs)
        return {
            package.name: FileFigures(size_bytes=sum((package / name).stat().st_size for name in files_of(package)))
        }

    def _compare(
        self, config: "nerfstudio.engine.trainer.TrainerConfig", model: MobileR2LModel, folder: Path
    ) -> Optional[Comparison]:
        """The comparison with held-out photos; None where they are not wanted or cannot be read."""
        if self.num_views <= 0:
            return None
        try:
            comparison = compare(config, model, folder, self.num_views)
        except UserError as error:
            print(f"No comparison with photos: {error}")
            return None
        loss = comparison.precision_loss_db or 0.0
        if loss > MAX_PRECISION_LOSS:
            print(f"onnx/pipeline.onnx loses {loss:.2f} dB in {self.precision}: --precision fp32 avoids this.")
        return comparison


_HINTS = {
    "onnx": "Render it in Python with `mobiler2l_ns.runtime.Renderer('{folder}').render(c2w)`; this needs numpy and "
    "onnxruntime alone.",
    "snap": "For a Lens, follow docs/lens-studio.md with {folder}.",
    "web": "For the browser, run `python -m http.server --directory {folder}` and open http://localhost:8000.",
    "coreml": "For an iPhone or a Mac, drag the .mlpackage in {folder} into Xcode.",
}


def entrypoint() -> None:
    """The command ns-export-mobiler2l."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(tyro.conf.FlagConversionOff[ExportMobileR2L]).main()


def load_student(config_path: Path, student: Optional[Tuple[MobileR2LModel, int]] = None) -> TrainedStudent:
    """Loads a trained student on the CPU.

    Args:
        config_path: The run's config.yml.
        student: Model and step, if they need not be loaded.

    Raises:
        UserError: The run is of another method, was never trained, or has weights that are NaN or infinite.
    """
    config = read_config(config_path)
    if not isinstance(config.pipeline.model, MobileR2LModelConfig):
        raise UserError(
            f"{config_path} is a {config.method_name} run, not a student: pass the config.yml of a run of "
            "ns-train mobiler2l."
        )
    model, step = student or load_model(config_path, "cpu")
    model = cast(MobileR2LModel, model)
    sampler = model.sampler
    has_camera = bool((sampler.grid > 0).all()) and float(sampler.focal) > 0 and bool(sampler.near < sampler.far)
    if not has_camera:
        raise UserError(f"{config_path} has a student without a camera: train it first with ns-train.")
    # The state dict has batch norm's running statistics too, which are not parameters but are exported.
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise UserError(f"{config_path} has weights that are NaN or infinite: train again with smaller learning rates.")
    return TrainedStudent(config, model, step)
