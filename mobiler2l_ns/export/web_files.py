"""The student as a web page: a static folder that any web server can serve, rendered by onnxruntime-web.

    index.html, viewer.js    the page; the same files for every student
    model.onnx               c2w (1,3,4) -> rgb (1,3,H,W) in 0..1
    scene.json               everything the page knows of this student
    reference.png            the start view as torch renders it: the page checks its first frame against it
    ort/                     the runtime, where it is shipped along; else the page takes it from a CDN

H, W: picture.
"""

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Dict, Optional

from PIL import Image
from torch import Tensor

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import OPSETS, intrinsics, trace_pipeline
from mobiler2l_ns.export.onnx_graph import set_metadata
from mobiler2l_ns.export.precision import Precision
from mobiler2l_ns.student.viewing_range import viewing_range

ASSETS = Path(__file__).with_name("web")
PAGE = ("index.html", "viewer.js")
MODEL, SCENE, REFERENCE, ORT = "model.onnx", "scene.json", "reference.png", "ort"
LOWEST_PSNR = 35.0  # decibels, of the first frame against reference.png, whose 8 bits alone allow 59

# The build of onnxruntime-web that has WebGPU and WASM in one, and runs in browsers without promise integration.
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
    model, folder: Path, scene: str, precision: Precision = "fp32", ort_dist: Optional[Path] = None
) -> None:
    """Writes the page.

    Args:
        model: A trained MobileR2LModel on the CPU.
        folder: An existing folder.
        scene: The page's title.
        precision: Of the network: fp32 or fp16. A browser whose GPU lacks fp16 renders fp16 files on its processor.
        ort_dist: The dist folder of the onnxruntime-web package, to be shipped along; None: the page takes the runtime
            from a CDN, which a hash of each file protects.

    Raises:
        UserError: ort_dist lacks files, or precision is int8.
        OSError: The folder cannot be written.
    """
    check_web_options(precision, ort_dist)
    graph = trace_pipeline(model, "rgb", precision, OPSETS[-1], any_batch=False)
    set_metadata(graph, intrinsics(model))
    data = graph.SerializeToString()
    (folder / MODEL).write_bytes(data)
    start = start_pose(model)
    pixels = (model.render_pose(start) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(folder / REFERENCE)
    facts = scene_dict(model, scene, start, {"file": MODEL, "bytes": len(data), "precision": precision})
    facts["runtime"] = runtime_dict(ORT_CDN if ort_dist is None else ORT + "/")
    (folder / SCENE).write_text(json.dumps(facts, indent=2) + "\n")
    for name in PAGE:
        shutil.copyfile(ASSETS / name, folder / name)
    if ort_dist is not None:
        (folder / ORT).mkdir(exist_ok=True)
        for name in ORT_FILES.values():
            shutil.copyfile(ort_dist / name, folder / ORT / name)


def scene_dict(model, scene: str, start: Tensor, file: Dict[str, object]) -> Dict[str, object]:
    """What the page knows of a student. Angles are radians, lengths world units, poses rows of a (3, 4) matrix."""
    height, width = model.size
    return {
        "name": scene, "height": height, "width": width, "model": file, "range": viewing_range(model).to_dict(),
        "reference": {"file": REFERENCE, "c2w": start.tolist(), "lowest_psnr": LOWEST_PSNR},
    }  # fmt: skip


def runtime_dict(base: str) -> Dict[str, object]:
    """Where the page finds onnxruntime-web, and by which hashes it knows the right files."""
    files = {
        role: {"file": name, "bytes": ORT_BYTES[role], "integrity": ORT_INTEGRITY[role]}
        for role, name in ORT_FILES.items()
    }
    return {"version": ORT_VERSION, "base": base, "files": files}


def check_web_options(precision: Precision, ort_dist: Optional[Path]) -> None:
    """Raises UserError where a page cannot be had with these options."""
    if precision == "int8":
        raise UserError("browsers have no int8 products on a GPU: export the web page with --precision fp32 or fp16.")
    if ort_dist is not None:
        check_ort_dist(ort_dist)


def check_ort_dist(path: Path) -> None:
    """Raises UserError where a folder is not the dist folder of the onnxruntime-web that the page was tested with."""
    cure = f"run `npm pack onnxruntime-web@{ORT_VERSION}`, unpack it and pass its dist folder."
    for role, name in ORT_FILES.items():
        if not (path / name).is_file():
            raise UserError(f"{path} has no {name}: {cure}")
        digest = base64.b64encode(hashlib.sha384((path / name).read_bytes()).digest()).decode()
        if f"sha384-{digest}" != ORT_INTEGRITY[role]:
            raise UserError(f"{path / name} is not that of onnxruntime-web {ORT_VERSION}: {cure}")


def start_pose(model) -> Tensor:
    """The pose (3, 4) that the page opens with."""
    views = viewing_range(model)
    return views.pose(*views.middle())
