"""Reference values of the verification: what torch computes in float64, and how much a file may differ from it.

All targets are compared with the same poses, points, codes and images. u: unit roundoff of float32, 2^-24.

B: poses; h, w: ray grid; H, W: image; K: points of a ray; L: frequencies; C: channels of the network.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.student.embedder import to_network_input
from mobiler2l_ns.student.sampler import Sampler
from mobiler2l_ns.student.surface import SurfaceEmbedder

IMAGE_TOLERANCE = 2e-4  # a twentieth of a grey level
_U = 2.0**-24


class Tolerances(NamedTuple):
    """The largest differences that rounding to float32 explains."""

    points: float
    codes: float
    images: float
    chain: float
    """From the pose to the image."""


@dataclass
class Truth:
    """Outputs of torch in float64, in the shapes of the files' inputs and outputs but for the batch."""

    c2w: Float32[np.ndarray, "B 3 4"]
    points: Float64[np.ndarray, "B 1 rays coordinates"]
    """3K coordinates for each of h*w rays."""
    codes: Float64[np.ndarray, "B codes rays columns"]
    """2L+1 codes of each coordinate; with a surface code (B, 1, rays, channels of the network's input)."""
    inputs: Float64[np.ndarray, "B channels h w"]
    """Inputs of the network."""
    images: Float64[np.ndarray, "B C H W"]
    """All channels of the network; depth is normalised to 0..1."""
    tolerance: Tolerances


@torch.no_grad()
def compute_truth(model: MobileR2LModel, poses: Float[Tensor, "B 3 4"]) -> Truth:
    """Runs the student in float64.

    Args:
        model: The student, on the CPU.
        poses: Camera-to-world poses that were not used for training.
    """
    sampler, embedder, network = (
        copy.deepcopy(module).double().eval() for module in (model.sampler, model.embedder, model.network)
    )
    h, w = model.sampler.grid.tolist()
    points, codes, inputs, images, rounding, of_surface = [], [], [], [], 0.0, 0.0
    for c2w in poses.float():
        rotation, position = c2w[None, None, :, :3].contiguous(), c2w[None, None, None, :, 3].contiguous()
        points.append(sampler(rotation.double(), position.double()))
        # The Embedder's file gets float32 points, so its exact codes are those of the rounded points.
        rounded = points[-1].float()
        codes.append(embedder(rounded.double()))
        if isinstance(model.embedder, SurfaceEmbedder):
            of_surface = max(of_surface, _surface_rounding(model.embedder, rounded))
        inputs.append(to_network_input(embedder(points[-1]), h, w))
        images.append(network(inputs[-1]))
        float32 = model.network(to_network_input(model.embedder(model.sampler(rotation, position)), h, w))
        rounding = max(rounding, float((float32 - images[-1]).abs().max()))
    all_points = torch.cat(points).numpy()
    return Truth(
        c2w=poses.float().numpy(),
        points=all_points,
        codes=torch.cat(codes).numpy(),
        inputs=torch.cat(inputs).numpy(),
        images=torch.cat(images).numpy(),
        tolerance=_tolerances(model, poses, all_points, rounding, of_surface),
    )


def _surface_rounding(embedder: SurfaceEmbedder, points: Float32[Tensor, "1 1 rays coordinates"]) -> float:
    """Largest error of a coordinate of the predicted surface that torch computes in float32.

    Args:
        embedder: In float32.
        points: The K points of each ray.
    """
    channels, exact = points.permute(0, 3, 1, 2), copy.deepcopy(embedder).double()
    return float((embedder.predict(channels)[0] - exact.predict(channels.double())[0]).abs().max())


def _tolerances(
    model: MobileR2LModel,
    poses: Float[Tensor, "B 3 4"],
    points: Float64[np.ndarray, "B 1 rays coordinates"],
    rounding: float,
    of_surface: float,
) -> Tolerances:
    """The largest differences from float64 that rounding to float32 explains.

    - Points: o + z (x r + y u - b). A term is rounded at most eight times: x, its product, two sums, z twice, the
      product with z and the last sum. Each rounding is at most u times |o| + far |d|, where d is the longest ray.
      (Rows of a rotation have length 1, so by Cauchy-Schwarz the terms add up to no more than |d|.)
    - Contracted points: see _contracted_tolerance.
    - Codes: see _codes_tolerance.
    - Images: 2e-4. In the chain, the rounding error of a point is multiplied by 2^(L-1) in its fastest code. Where the
      scene is so large or the weights are so steep that torch in float32 comes near 2e-4, a file may differ by four
      times the error of torch, because its sums have another order.

    Args:
        model: The student.
        poses: The poses of the comparison.
        points: Their points in float64.
        rounding: Largest error of an image that torch computes in float32.
        of_surface: Largest error of a coordinate of the surface that torch computes in float32.
    """
    origin = float(poses[:, :, 3].abs().max())
    ray = float(model.sampler.directions().norm(dim=-1).max())
    if model.sampler.unbounded:
        of_points = _contracted_tolerance(model.sampler, origin, ray, points)
    else:
        of_points = 8 * _U * (origin + float(model.sampler.far) * ray)
    return Tolerances(
        points=of_points,
        codes=_codes_tolerance(model, float(np.abs(points).max()), of_surface),
        images=IMAGE_TOLERANCE,
        chain=max(IMAGE_TOLERANCE, 4 * rounding),
    )


def _contracted_tolerance(
    sampler: Sampler, origin: float, ray: float, points: Float64[np.ndarray, "B 1 rays coordinates"]
) -> float:
    """The tolerance of contracted points.

    1/z takes four roundings more than z; moving and scaling to the cameras' cube takes two. The contraction multiplies
    an error by at most 3/2, and outside the cube by at most 3/m, because x/m changes by 2/m of it; 1/m is
    2 - max |point|. Its own arithmetic rounds numbers of at most 2 another eight times.

    Args:
        sampler: The student's sampler, unbounded.
        origin: Largest coordinate of a camera position.
        ray: Length of the longest ray direction.
        points: Contracted points in float64.
    """
    depths = sampler.depths.numpy()[:, None]
    error = 12 * _U * (origin + float(sampler.centre.abs().max()) + depths * ray) / float(sampler.radius) + 2 * _U
    largest = np.abs(points).reshape(-1, sampler.num_points, 3).max(axis=-1)
    slope = np.minimum(1.5, 3 * (2 - largest.min(axis=0)))[:, None]
    return float((error * slope).max()) + 16 * _U


def _codes_tolerance(model: MobileR2LModel, largest: float, of_surface: float) -> float:
    """The tolerance of codes, for exact points.

    Scaling by 2^l is exact, and the slope of sin is at most 1. The error is that of the argument's reduction, u times
    at most 2^(L-1) |x|, and a few u of the polynomial after it. Doubling an angle turns an error e of its sine and
    cosine into at most 4 e + 3 u: from 2 u to 47 u where that is done twice.

    The code of a surface has S octaves, and the surface is itself computed: its error is multiplied by 2^(S-1). How
    much float32 rounds the surface depends on the trained weights, and no formula bounds it closely. So the error of
    torch in float32 is measured, as for images, and a file may have four times of it, because its sums have another
    order.

    Args:
        model: The student.
        largest: Largest coordinate of a point.
        of_surface: Largest error of a coordinate of the surface that torch computes in float32.
    """
    embedder = model.embedder
    if not isinstance(embedder, SurfaceEmbedder):
        return _U * (2 ** (embedder.num_frequencies - 1) * largest + 48)
    fastest = 2 ** (embedder.surface_octaves - 1)
    return _U * (fastest * largest + 48) + fastest * 4 * of_surface
