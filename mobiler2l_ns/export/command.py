"""``ns-export-mobiler2l``: a trained student as verified files for every place where people look, with a report."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Literal, Optional, Tuple

import torch
import tyro

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.optional import require
from mobiler2l_ns.export.output_folder import REPORT, files_of, move_into_place, replaceable_files, staging_folder
from mobiler2l_ns.export.pose_graph import OUTPUT_NAMES
from mobiler2l_ns.export.precision import Precision
from mobiler2l_ns.student.network import Outputs

Target = Literal["onnx", "snap", "web", "coreml"]
Begin = Callable[[], None]  # tells the bar that the next stage begins
LARGEST_LOSS = 0.3  # dB against photos; a file of fewer bits that loses more is reported as such
_NUM_VERIFIED_POSES = 2


@dataclass
class ExportMobileR2L:
    """Exports a trained student, checks each file against torch, and compares pictures with the photos."""

    load_config: Path
    """The student's config.yml, or its folder."""
    output_dir: Path
    """Folder for the files, one folder a target in it; made if it is not there."""
    targets: Tuple[Target, ...] = ("onnx", "snap")
    """onnx: onnxruntime and everything that reads ONNX. snap: Lens Studio. web: a page that renders in the browser.
    coreml: an .mlpackage (needs coremltools)."""
    precision: Precision = "fp32"
    """Of the network in onnx/pipeline.onnx and the web page. int8 is calibrated on poses of the capture."""
    outputs: Outputs = "rgb"
    """What the networks for onnxruntime, Lens Studio and CoreML return: rgb, and alpha and depth of a student that has
    them. The web page shows colours."""
    opset: int = 20
    """Opset of onnx/pipeline.onnx; the other ONNX files have 11, the web page's 20."""
    ort_dist: Optional[Path] = None
    """The dist folder of npm's onnxruntime-web: the web page then works offline."""
    num_views: int = 4
    """Photos to render again and compare; 0 skips that and needs no data set."""
    overwrite: bool = False
    """Replace what the folder holds of another export, and write beside files that are not ours."""

    def main(self) -> None:
        """Exports and says what to do next."""
        self.export()
        from nerfstudio.utils.rich_utils import CONSOLE

        hints = [f"Next: look at the student with `ns-viewer --load-config {self.load_config}`."]
        hints += [_HINTS[target].format(folder=self.output_dir / target) for target in self.targets]
        CONSOLE.print("\n".join(hints))

    def export(self, student: Optional[Tuple[torch.nn.Module, int]] = None) -> Dict[str, object]:
        """Writes and verifies everything; until it is verified, nothing in output_dir changes.

        Args:
            student: The run's model on the CPU in eval mode, and its step, where it is at hand; left out: its newest
                checkpoint is loaded.

        Returns:
            The content of report.json.

        Raises:
            UserError: The run is no trained student, too large or without what was asked for; a file differs from it;
                or output_dir cannot be written.
        """
        from mobiler2l_ns.export.verification import check_parity, print_table

        config_path = self.load_config / "config.yml" if self.load_config.is_dir() else self.load_config
        config_path = config_path.resolve()
        output_dir = self.output_dir.expanduser().resolve()  # beside the real folder: renames must not cross disks
        self._check_options()
        config, model, step = load_student(config_path, student)
        self._check_student(model, config_path)
        try:
            ours = replaceable_files(output_dir, config_path, self.overwrite)
            with staging_folder(output_dir) as staging:
                files = self._write_and_verify(model, config, staging)
                check_parity(files, output_dir)
                run = {"config": str(config_path), "step": step, "method": config.method_name}
                report = {"run": run, **_figures(model, files, config_path), **self._pictures(config, model, staging)}
                report["files"] = sorted(files_of(staging) | {REPORT})
                (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
                move_into_place(staging, output_dir, ours)
        except OSError as error:
            raise UserError(f"{output_dir} cannot be written ({error}): pass another --output-dir.") from None
        print_table(report, files)
        return report

    def _check_options(self) -> None:
        from mobiler2l_ns.export.onnx_files import OPSETS

        if not self.targets:
            raise UserError("there is nothing to export: name at least one of onnx, snap, web and coreml as --targets.")
        if self.opset not in OPSETS:
            raise UserError(f"--opset {self.opset} cannot be written: pass one from {OPSETS[0]} to {OPSETS[-1]}.")
        if set(self.targets) - {"coreml"}:
            for package in ("onnx", "onnxruntime", *(["ml_dtypes"] if self.precision == "int8" else [])):
                require(package)
        if "coreml" in self.targets:
            from mobiler2l_ns.export.coreml_files import import_coremltools

            import_coremltools()
        if "web" in self.targets:
            from mobiler2l_ns.export.web_files import check_web_options

            check_web_options(self.precision, self.ort_dist)
        elif self.ort_dist is not None:
            raise UserError("--ort-dist is for the web page: add web to --targets.")

    def _check_student(self, model, config_path: Path) -> None:
        from mobiler2l_ns.export.onnx_files import check_size

        check_size(model)
        if len(self.outputs) > model.network.config.out_channels:
            missing = " and ".join(OUTPUT_NAMES[self.outputs][1:])
            raise UserError(f"{config_path} has a student without {missing}: pass --outputs rgb.")

    def _write_and_verify(self, model, config, folder: Path) -> Dict[str, dict]:
        """Fills a folder and returns the figures of each file, by its path in the folder."""
        from mobiler2l_ns.export.verification import compute_truth
        from mobiler2l_ns.student.viewing_range import viewing_range
        from mobiler2l_ns.training.progress import stages

        scene = config.experiment_name or "scene"
        targets, entries = dict.fromkeys(self.targets), {}
        with stages(1 + 2 * len(targets)) as begin:
            begin("Rendering in torch, to compare with")
            truth = compute_truth(model, viewing_range(model).sample(_NUM_VERIFIED_POSES, seed=1))
            for target in targets:
                (folder / target).mkdir()
                begin(f"Writing {target}")
                begin_verifying = partial(begin, f"Verifying {target}")
                figures = getattr(self, f"_export_{target}")(model, truth, folder / target, scene, begin_verifying)
                entries.update({f"{target}/{name}": entry for name, entry in figures.items()})
        return entries

    def _export_onnx(self, model, truth, folder: Path, scene: str, begin_verifying: Begin) -> Dict[str, dict]:
        from mobiler2l_ns.export.onnx_files import write_onnx_files
        from mobiler2l_ns.export.verification import verify_onnx

        write_onnx_files(model, folder, self.outputs, self.precision, self.opset)
        begin_verifying()
        return verify_onnx(model, truth, folder, self.outputs, self.precision)

    def _export_snap(self, model, truth, folder: Path, scene: str, begin_verifying: Begin) -> Dict[str, dict]:
        from nerfstudio.utils.rich_utils import CONSOLE

        from mobiler2l_ns.export.snap_files import check_budget, lens_bytes, write_snap_files
        from mobiler2l_ns.export.snap_operators import backend_table
        from mobiler2l_ns.export.verification import verify_snap

        write_snap_files(model, folder, scene, self.outputs)
        begin_verifying()
        entries = verify_snap(model, truth, folder, scene, self.outputs)
        CONSOLE.print(backend_table(sorted(folder.glob("*.onnx"))))
        if warning := check_budget(lens_bytes(folder)):
            CONSOLE.print(warning)
        return entries

    def _export_web(self, model, truth, folder: Path, scene: str, begin_verifying: Begin) -> Dict[str, dict]:
        from mobiler2l_ns.export.verification import verify_graph
        from mobiler2l_ns.export.web_files import MODEL, write_web_files

        write_web_files(model, folder, scene, self.precision, self.ort_dist)
        begin_verifying()
        return {MODEL: verify_graph(model, truth, folder / MODEL, self.precision)}

    def _export_coreml(self, model, truth, folder: Path, scene: str, begin_verifying: Begin) -> Dict[str, dict]:
        from mobiler2l_ns.export.coreml_files import check_coreml, coreml_name, write_coreml_files

        write_coreml_files(model, folder, scene, self.outputs)
        begin_verifying()
        package = folder / coreml_name(scene)
        check_coreml(package, model, self.outputs)
        return {package.name: {"size_bytes": sum(path.stat().st_size for path in package.rglob("*") if path.is_file())}}

    def _pictures(self, config, model, folder: Path) -> dict:
        """Scores of the exported files against the run's photos; empty where the data set is out of reach."""
        if self.num_views <= 0:
            return {}
        from mobiler2l_ns.export.comparison import compare

        try:
            scores = compare(config, model, folder, self.num_views)
        except UserError as error:
            print(f"No comparison with photos: {error}")
            return {}
        loss = scores.get("precision_loss_db", 0.0)
        if loss > LARGEST_LOSS:
            print(f"onnx/pipeline.onnx loses {loss:.2f} dB to {self.precision}: --precision fp32 would not.")
        return scores


_HINTS = {
    "onnx": "Render it in Python with `mobiler2l_ns.runtime.Renderer('{folder}').render(c2w)`, with numpy and "
    "onnxruntime alone.",
    "snap": "For a Lens, follow docs/lens-studio.md with {folder}.",
    "web": "For the browser, run `python -m http.server --directory {folder}` and open http://localhost:8000.",
    "coreml": "For an iPhone or a Mac, drag the .mlpackage in {folder} into Xcode.",
}


def entrypoint() -> None:
    """The command ns-export-mobiler2l."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(tyro.conf.FlagConversionOff[ExportMobileR2L]).main()


def load_student(
    config_path: Path, student: Optional[Tuple[torch.nn.Module, int]] = None
) -> Tuple[object, torch.nn.Module, int]:
    """A trained student's config, its model on the CPU, and the step of its checkpoint.

    Args:
        config_path: The run's config.yml.
        student: Model and step, where they are at hand.

    Raises:
        UserError: The run is another method's, was never trained, or has weights that are no numbers.
    """
    from mobiler2l_ns.checkpoints import load_model, read_config
    from mobiler2l_ns.model import MobileR2LModelConfig

    config = read_config(config_path)
    if not isinstance(config.pipeline.model, MobileR2LModelConfig):
        raise UserError(
            f"{config_path} is a {config.method_name} run, not a student: pass the config.yml of a run of "
            "ns-train mobiler2l."
        )
    model, step = student or load_model(config_path, "cpu")
    sampler = model.sampler
    has_camera = bool((sampler.grid > 0).all()) and float(sampler.focal) > 0 and sampler.near < sampler.far
    if not has_camera:
        raise UserError(f"{config_path} has a student that never saw a camera: train it first with ns-train.")
    # Batch norm's running statistics are no parameters but travel into the files too.
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise UserError(f"{config_path} has weights that are NaN or infinite: train again with smaller learning rates.")
    return config, model, step


def _figures(model, files: Dict[str, dict], config_path: Path) -> dict:
    """What report.json says about the student and each file."""
    from mobiler2l_ns.student.network import count_macs, count_parameters

    (h, w), (height, width) = model.sampler.grid.tolist(), model.size

    def column(key: str) -> dict:
        return {name: entry[key] for name, entry in files.items() if entry.get(key) is not None}

    path = config_path.parent / "distillation.json"
    distillation = json.loads(path.read_text()) if path.is_file() else {}
    return {
        "image": {"height": height, "width": width},
        "grid": {"height": h, "width": w},
        "params": count_parameters(model.network),
        "gmac": count_macs(model.network, h, w) / 1e9,
        "parity": {key: column(key) for key in ("max_abs", "mean_abs", "tolerance", "psnr")},
        "size_bytes": column("size_bytes"),
        "latency_ms": column("latency_ms"),
        "operators": column("operators"),
        "pool": distillation.get("pool"),
        "finetuning": distillation.get("finetuning"),
    }
