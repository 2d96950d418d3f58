"""How far the mesh that `ns-export tsdf` makes of a student lies from the demo scene's exact surface.

    python scripts/bench/mesh.py --student outputs/demo/mobiler2l-small/TIME/config.yml

Distances are relative to the scene's radius: the largest distance of its surface from the point that all cameras look
at. Accuracy is measured from points evenly spread over the mesh to the exact surface, completeness from the points of
the exact surface that held-out views see to the mesh.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import trimesh
from demo_scene.cameras import TARGET
from missing_packages import OPEN3D, cure, missing

from bench.common import CPU, console, with_machine, write_figures
from bench.geometry import load_views
from mobiler2l_ns.checkpoints import load_dataparser_transform
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.run_config import read_config

OPTIONS = ["--texture-method", "tsdf", "--use-bounding-box", "False"]
NUM_POINTS = 20000


def to_run(points: np.ndarray, config_path: Path) -> np.ndarray:
    """Scene coordinates (N, 3) in the world that a run was trained in."""
    transform, scale = load_dataparser_transform(config_path)
    return scale * trimesh.transform_points(points, np.vstack([transform.numpy(), [0, 0, 0, 1]]))


def visible_points(config, seed: int = 0) -> np.ndarray:
    """Points (N, 3) of the exact surface that held-out views see, in the run's world."""
    points: List[torch.Tensor] = []
    for view in load_views(config):
        rays = view.camera.generate_rays(0, keep_shape=True)
        seen = view.distance.isfinite()[..., 0]
        points.append((rays.origins + rays.directions * view.distance)[seen])
    found = torch.cat(points).numpy()
    return found[np.random.default_rng(seed).choice(len(found), min(NUM_POINTS, len(found)), replace=False)]


def distances(points: np.ndarray, mesh: trimesh.Trimesh) -> np.ndarray:
    """Distance (N,) of points (N, 3) from a mesh."""
    import open3d as o3d  # it loads system libraries, see measure()

    scene = o3d.t.geometry.RaycastingScene()
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32)
    scene.add_triangles(o3d.core.Tensor(vertices), o3d.core.Tensor(faces))
    return scene.compute_distance(o3d.core.Tensor(points.astype(np.float32))).numpy()


def judge(mesh: trimesh.Trimesh, exact: trimesh.Trimesh, visible: np.ndarray, radius: float) -> Dict:
    """Median and 90th percentile of the distances both ways, and the share of the visible surface within 5 %."""
    accuracy = distances(trimesh.sample.sample_surface(mesh, NUM_POINTS, seed=0)[0], exact) / radius
    completeness = distances(visible, mesh) / radius
    both = {"accuracy": accuracy, "completeness": completeness}
    figures = {name: {f"p{q}": round(float(np.percentile(d, q)), 5) for q in (50, 90)} for name, d in both.items()}
    return {**figures, "visible_within_5_percent": round(float((completeness < 0.05).mean()), 4)}


def measure(config_path: Path) -> Dict:
    """Exports a student's mesh by the real command and returns what is printed and written."""
    if absent := missing(OPEN3D):
        raise UserError(f"ns-export needs {', '.join(absent)}: run {cure(absent)}.")
    config = read_config(config_path)
    data = Path(config.pipeline.datamanager.data)
    if not (data / "geometry.ply").is_file():
        raise UserError(f"there is no {data / 'geometry.ply'}: train on a scene of scripts/make_demo_scene.py.")
    with tempfile.TemporaryDirectory() as folder:
        command = Path(sys.executable).with_name("ns-export")
        subprocess.run(
            [command, "tsdf", "--load-config", config_path, "--output-dir", folder, *OPTIONS], check=True
        )  # fmt: skip
        mesh = trimesh.load(Path(folder) / "tsdf_mesh.ply", process=False)
    exact = trimesh.load(data / "geometry.ply", process=False)
    exact.vertices = to_run(exact.vertices, config_path)
    radius = float(np.linalg.norm(exact.vertices - to_run(TARGET[None], config_path), axis=1).max())
    return {
        "scene": data.name,
        "method": config.method_name,
        "export": " ".join(["ns-export tsdf", *OPTIONS]),
        "scene_radius": round(radius, 4),
        "vertices": len(mesh.vertices),
        **judge(mesh, exact, visible_points(config), radius),
    }


def main() -> None:
    """Reads the command line, measures, prints a sentence and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="config.yml of a student of a demo scene")
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks/mesh-demo.json"), help="for the figures")
    options = parser.parse_args()
    figures = with_machine(measure(options.student.resolve()), CPU)
    accuracy, completeness = figures["accuracy"], figures["completeness"]
    console.print(
        f"Mesh to surface: {accuracy['p50']:.2%} of the scene's radius at the median, {accuracy['p90']:.2%} for the "
        f"best nine tenths; visible surface to mesh: {completeness['p50']:.2%} and {completeness['p90']:.2%}."
    )
    write_figures(figures, options.json)


if __name__ == "__main__":
    main()
