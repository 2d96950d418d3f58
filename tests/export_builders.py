"""Exported files, the poses to render them at, and the images that they must give."""

import math

import numpy as np
import onnx
import torch
from builders import make_student

from mobiler2l_ns.cameras import cell_centres, pinhole_cameras, rays_at, student_rays
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.export.onnx_files import write_onnx_files
from mobiler2l_ns.export.snap_files import write_snap_files
from mobiler2l_ns.student.viewing_range import viewing_range


def template_orbit(theta, phi, radius):
    """Snap's Lens template: c2w = M Rtheta (Rphi T(0, 0, R)); angles in degrees."""
    theta, phi = math.radians(theta), math.radians(phi)
    shift = np.eye(4)
    shift[2, 3] = radius
    tilt, turn = np.eye(4), np.eye(4)
    tilt[1:3, 1:3] = [[math.cos(phi), -math.sin(phi)], [math.sin(phi), math.cos(phi)]]
    turn[np.ix_([0, 2], [0, 2])] = [[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]
    to_z_up = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return (to_z_up @ turn @ (tilt @ shift)).astype(np.float32)


def some_poses():
    """Poses of a student's range, and of the orbit of Snap's template."""
    orbit = viewing_range(make_student())  # without viewpoints, around the origin
    poses = [np.vstack([p.numpy(), [0, 0, 0, 1]]) for p in orbit.sample(2, seed=11)]
    poses += [template_orbit(theta, phi, 3.5) for theta, phi in ((0, -30), (137, -75), (-80, -15))]
    return [pose.astype(np.float32) for pose in poses]


@torch.no_grad()
def torch_image(model, c2w):
    """What the student renders in nerfstudio, through nerfstudio's own cameras."""
    return model.renderer.render_rays(*student_rays(nerfstudio_rays(model, c2w)))[0].permute(1, 2, 0).numpy()


def nerfstudio_rays(model, c2w):
    """Rays of nerfstudio's cameras through the centres of a student's cells."""
    h, w = model.sampler.grid.tolist()
    cameras = pinhole_cameras(torch.from_numpy(c2w[None, :3]), model.focal, *model.size)
    return rays_at(cameras, torch.zeros(1, dtype=torch.long), cell_centres(h, w, (model.upscale, model.upscale))[None])


def write_both(model, folder, outputs="rgb"):
    """The onnx and the snap folder of a student."""
    for target in ("onnx", "snap"):
        (folder / target).mkdir()
    write_onnx_files(model, folder / "onnx", outputs)
    write_snap_files(model, folder / "snap", "lego", outputs)
    return folder


def corrupt(path, amount=0.05):
    """Changes one weight of the last convolution."""
    model = onnx.load(path)
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    (tensor,) = [t for t in model.graph.initializer if t.name == convolution.input[1]]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += amount
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def export_run(config_path, output_dir, **options):
    """Runs ns-export-mobiler2l, by default without photos."""
    return ExportMobileR2L(config_path, output_dir, **{"num_views": 0, **options}).export()
