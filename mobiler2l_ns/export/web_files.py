"""The web page: a static folder for any web server, in which onnxruntime-web renders the student.

    index.html, viewer.js, scene.js    the page; the same files for every student
    model.onnx                         c2w (1,3,4) -> rgb (1,3,H,W) in 0..1
    scene.json                         name, size, viewing range and file names of this student; scene.js checks it
    reference.png                      the start view, rendered by torch: the page compares its first image with it
    ort/                               onnxruntime-web, if it was copied; else the page loads it from a CDN

H, W: image.
"""

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Dict, Optional

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import OPSETS, intrinsics, trace_pipeline
from mobiler2l_ns.export.onnx_graph import set_metadata
from mobiler2l_ns.export.precision import Precision
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.student.viewing_range import viewing_range

ASSETS = Path(__file__).with_name("web")
PAGE = ("index.html", "viewer.js", "scene.js")
MODEL, SCENE, REFERENCE, ORT = "model.onnx", "scene.json", "reference.png", "ort"
LOWEST_PSNR = 35.0  # dB, of the page's first image against reference.png, whose 8 bits alone limit it to 59

# This build of onnxruntime-web has WebGPU and WASM in one file, and runs in browsers without promise integration.
ORT_VERSION = "1.30.0"
ORT_CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{ORT_VERSION}/dist/"
ORT_FILES = {
    "script": "ort.webgpu.min.mjs",
    "factory": "ort-wasm-simd-threaded.asyncify.mjs",
    "wasm": "ort-wasm-simd-threaded.asyncify.wasm",
}
ORT_BYTES = {"script": 66_349, "factory": 53_057, "wasm": 26_781_914}
ORT_INTEGRITY = {
    "script": "sha384-FPQBMbud8ICuP0Ii+Gr95KWEX9pKHtUC3lacIp0aPI8WYluKvTsEGQ3AE2Ze3QlL",
    "factory": "sha384-qViEcCGzsR/m8nlQwIsbYh7afN4thuraqFYDQY6huvmoLVoZq/eYawQ1wrv8nnhA",
    "wasm": "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
}


def write_web_files(
    model: MobileR2LModel, folder: Path, scene: str, precision: Precision = "fp32", ort_dist: Optional[Path] = None
) -> None:
    """Writes the page.

    Args:
        model: A trained student on the CPU.
        folder: An existing folder.
        scene: The page's title.
        precision: Of the network: fp32 or fp16. A browser whose GPU lacks fp16 renders fp16 files on the CPU.
        ort_dist: The dist folder of the package onnxruntime-web, to be copied; None: the page loads these files from a
            CDN and checks their hashes.

    Raises:
        UserError: ort_dist lacks files, or precision is int8.
        OSError: The folder cannot be written.
    """
    check_web_options(precision, ort_dist)
    graph = trace_pipeline(model, "rgb", precision, OPSETS[-1], any_batch=False)
    set_metadata(graph, intrinsics(model).to_dict())
    data = graph.SerializeToString()
    (folder / MODEL).write_bytes(data)
    start = start_pose(model)
    pixels = (model.render_pose(start) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(folder / REFERENCE)
    content = scene_dict(model, scene, start, len(data), precision, ORT_CDN if ort_dist is None else ORT + "/")
    (folder / SCENE).write_text(json.dumps(content, indent=2) + "\n")
    for name in PAGE:
        shutil.copyfile(ASSETS / name, folder / name)
    if ort_dist is not None:
        (folder / ORT).mkdir(exist_ok=True)
        for name in ORT_FILES.values():
            shutil.copyfile(ort_dist / name, folder / ORT / name)


def scene_dict(
    model: MobileR2LModel, scene: str, start: Float[Tensor, "3 4"], size: int, precision: Precision, ort: str
) -> Dict[str, object]:
    """The content of scene.json. Angles are in radians, lengths in world units; poses are rows of a (3, 4) matrix.

    Args:
        model: The student.
        scene: The page's title.
        start: Pose of the start view.
        size: Bytes of model.onnx.
        precision: Of model.onnx.
        ort: URL of the folder with onnxruntime-web.
    """
    height, width = model.size
    return {
        "name": scene,
        "height": height,
        "width": width,
        "model": {"file": MODEL, "bytes": size, "precision": precision},
        "range": viewing_range(model).to_dict(),
        "reference": {"file": REFERENCE, "c2w": start.tolist(), "lowest_psnr": LOWEST_PSNR},
        "runtime": runtime_dict(ort),
    }


def runtime_dict(base: str) -> Dict[str, object]:
    """URL, sizes and hashes of onnxruntime-web's files."""
    files = {
        role: {"file": name, "bytes": ORT_BYTES[role], "integrity": ORT_INTEGRITY[role]}
        for role, name in ORT_FILES.items()
    }
    return {"version": ORT_VERSION, "base": base, "files": files}


def check_web_options(precision: Precision, ort_dist: Optional[Path]) -> None:
    """Raises UserError where a page cannot be written with these options."""
    if precision == "int8":
        raise UserError("browsers have no int8 products on a GPU: export the web page with --precision fp32 or fp16.")
    if ort_dist is not None:
        check_ort_dist(ort_dist)


def check_ort_dist(path: Path) -> None:
    """Raises UserError where a folder is not the dist folder of the tested version of onnxruntime-web."""
    cure = f"run `npm pack onnxruntime-web@{ORT_VERSION}`, unpack it and pass its dist folder."
    for role, name in ORT_FILES.items():
        if not (path / name).is_file():
            raise UserError(f"{path} has no {name}: {cure}")
        digest = base64.b64encode(hashlib.sha384((path / name).read_bytes()).digest()).decode()
        if f"sha384-{digest}" != ORT_INTEGRITY[role]:
            raise UserError(f"{path / name} is not that of onnxruntime-web {ORT_VERSION}: {cure}")


def start_pose(model: MobileR2LModel) -> Float[Tensor, "3 4"]:
    """The pose of the page's start view."""
    views = viewing_range(model)
    return views.pose(*views.middle())
