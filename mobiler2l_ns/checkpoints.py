"""nerfstudio runs on disk: find them, load their model without data set or network.

A run is a folder ``OUTPUTS/<experiment>/<method>/<timestamp>/`` with ``config.yml``, ``dataparser_transforms.json`` and
``nerfstudio_models/step-*.ckpt``.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Optional, Tuple

import torch
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.base_model import Model
from nerfstudio.utils import external
from torch import Tensor

from mobiler2l_ns.compat import allow_numpy_scalars, without_lpips_download
from mobiler2l_ns.errors import UntrustedFile, UserError
from mobiler2l_ns.files import replace_file
from mobiler2l_ns.run_config import read_config

# How torch names a class or function that it refuses in a file of weights.
OTHER_THAN_WEIGHTS = re.compile(r"GLOBAL (\S+)")


def checkpoint_paths(config_path: Path, config) -> List[Path]:
    """Checkpoints of a run, oldest first. They are looked for beside config.yml, wherever the run was moved to."""
    return sorted((config_path.parent / config.relative_model_dir).glob("step-*.ckpt"))


def num_steps(checkpoint: Path) -> int:
    """How many steps a checkpoint's run had taken, by the file's name."""
    return int(checkpoint.stem.split("-")[1]) + 1


def find_runs(outputs: Path) -> List[Path]:
    """The config.yml of every run below ``outputs``, newest first."""
    return sorted(outputs.glob("*/*/*/config.yml"), key=lambda path: path.stat().st_mtime, reverse=True)


def load_dataparser_transform(config_path: Path) -> Optional[Tuple[Tensor, float]]:
    """Pose transform (3, 4) and scale of the world that a run was trained in, or None where the run did not save it.

    Raises:
        UserError: The file is damaged.
    """
    path = config_path.parent / "dataparser_transforms.json"
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_bytes())
        transform, scale = torch.tensor(saved["transform"], dtype=torch.float32), float(saved["scale"])
    except (ValueError, KeyError, TypeError, RecursionError):
        transform, scale = torch.empty(0), 0.0
    # The comparison with the world of a student would let NaN through.
    if transform.shape != (3, 4) or not (transform.isfinite().all() and 0 < scale < math.inf):
        raise UserError(f"{path} is damaged: copy the run again from where it was trained, or train it again.")
    return transform, scale


def load_model(config_path: Path, device) -> Tuple[Model, int]:
    """Rebuilds the model of a run from its newest checkpoint: frozen, in eval mode, on ``device``.

    Reads only config.yml and the checkpoint; sizes that nerfstudio takes from the data set are read off the weights.

    Args:
        config_path: A run's config.yml.
        device: Where the model goes.

    Returns:
        The model and the step it was saved at.

    Raises:
        UserError: No checkpoint, an unreadable one, one of another architecture, or a method that needs more.
    """
    config = read_config(config_path)
    checkpoints = checkpoint_paths(config_path, config)
    if not checkpoints:
        folder = config_path.parent / config.relative_model_dir
        raise UserError(
            f"{folder} has no checkpoint: train this run first, or pass the config.yml of one that was saved."
        )
    path = checkpoints[-1]
    saved = read_checkpoint(path)
    state, step = model_state(saved["pipeline"]), int(saved["step"])
    try:
        model = _build_model(config.pipeline.model, state, device, path)
    except Exception as error:
        # Third-party models may ask for anything that their data set knows.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
        raise UserError(
            f"{config_path} was trained with {config.method_name}, which cannot be rebuilt from its checkpoint "
            f"({reason}): pass another run."
        ) from error
    model.update_to_step(step)  # before the weights, as nerfstudio does: TensoRF's grids grow in training
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path} was written by another architecture than {config_path} describes ({reason}): "
            "use the config.yml from the same run."
        ) from None
    return model.to(device).eval().requires_grad_(False), step


def read_checkpoint(path: Path) -> Dict[str, Any]:
    """What a checkpoint contains: weights, other tensors and plain numbers, and nothing that could run as code.

    Raises:
        UserError: The file is not whole, or is something else.
        UntrustedFile: It contains other objects.
    """
    allow_numpy_scalars()  # for commands of ours that do not discover the methods
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if missing := {"pipeline", "step"} - loaded.keys():
            raise KeyError(missing)
    except Exception as error:
        other = OTHER_THAN_WEIGHTS.search(str(error))
        if other:
            raise UntrustedFile(
                f"{path} contains {other[1]} beside its weights, which could run as code, so it was not loaded: pass a "
                "run that you trust, whose checkpoint ns-train wrote."
            ) from None
        # A file cut short by a full disk or a kill fails in many ways: zip, pickle, key errors.
        raise UserError(
            f"{path} is not a whole nerfstudio checkpoint: delete it, or resume the run to write it anew."
        ) from None
    return loaded


def write_checkpoint(folder: Path, step: int, content: Dict[str, Any]) -> Path:
    """Writes a checkpoint, whole or not at all.

    Args:
        folder: The run's nerfstudio_models; nothing but checkpoints is ever in it, as nerfstudio expects.
        step: The step that it is of.
        content: What it contains.

    Returns:
        The file.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, unfinished = folder / f"step-{step:09d}.ckpt", folder.with_name(folder.name + ".writing")
    try:
        # Given a path, torch would report a full disk as a RuntimeError about positions.
        with open(unfinished, "wb") as file:
            _save(content, file)
        replace_file(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _save(content: Dict[str, Any], file: BinaryIO) -> None:
    """torch.save, with the OSError of a full disk where torch reports what followed from it."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def model_state(pipeline_state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The model's own entries of a pipeline's state dict, without DDP's prefix and without LPIPS weights."""
    state = {}
    for key, value in pipeline_state.items():
        key = key.removeprefix("module.")
        if key.startswith("_model."):
            state[key.removeprefix("_model.").removeprefix("module.")] = value
    return {key: value for key, value in state.items() if not key.startswith("lpips.")}


def _build_model(model_config, state: Dict[str, Tensor], device, path: Path) -> Model:
    aabb = next((value.view(2, 3) for key, value in state.items() if key.endswith("aabb")), None)
    a_row_an_image = ("embedding_appearance.embedding.weight", "camera_optimizer.pose_adjustment", "bil_grids.grids")
    num_images = next((len(value) for key, value in state.items() if key.endswith(a_row_an_image)), 1)
    uses_tcnn = any("tcnn_encoding" in key for key in state)
    if uses_tcnn and not (external.TCNN_EXISTS and torch.device(device).type == "cuda"):
        raise UserError(
            f"{path} needs tiny-cuda-nn on an NVIDIA GPU: install it there, or train the run with "
            "--pipeline.model.implementation torch."
        )
    if hasattr(model_config, "implementation"):
        # config.yml says "tcnn" even where nerfstudio fell back to torch; the weights know better.
        model_config.implementation = "tcnn" if uses_tcnn else "torch"
    with without_lpips_download():
        return model_config.setup(
            scene_box=SceneBox(aabb if aabb is not None else torch.tensor([[-1.0] * 3, [1.0] * 3])),
            num_train_data=num_images,
            metadata={},
            device=device,
            grad_scaler=None,
            seed_points=None,
        )
