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
    codes: Float64[np.ndarray, "B codes rays coordinates"]
    """2L+1 codes of each coordinate."""
    inputs: Float64[np.ndarray, "B channels h w"]
    """Inputs of the network: 3K(2L+1) channels."""
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
    points, codes, inputs, images, rounding = [], [], [], [], 0.0
    for c2w in poses.float():
        rotation, position = c2w[None, None, :, :3].contiguous(), c2w[None, None, None, :, 3].contiguous()
        points.append(sampler(rotation.double(), position.double()))
        # The Embedder's file gets float32 points, so its exact codes are those of the rounded points.
        codes.append(embedder(points[-1].float().double()))
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
        tolerance=_tolerances(model, poses, all_points, rounding),
    )


def _tolerances(
    model: MobileR2LModel,
    poses: Float[Tensor, "B 3 4"],
    points: Float64[np.ndarray, "B 1 rays coordinates"],
    rounding: float,
) -> Tolerances:
    """The largest differences from float64 that rounding to float32 explains.

    - Points: o + z (x r + y u - b). A term is rounded at most eight times: x, its product, two sums, z twice, the
      product with z and the last sum. Each rounding is at most u times |o| + far |d|, where d is the longest ray.
      (Rows of a rotation have length 1, so by Cauchy-Schwarz the terms add up to no more than |d|.)
    - Contracted points: see _contracted_tolerance.
    - Codes: scaling by 2^l is exact, and the slope of sin is at most 1. The error is that of the argument's reduction,
      u times at most 2^(L-1) |x|, and a few u of the polynomial after it. Doubling an angle turns an error e of its
      sine and cosine into at most 4 e + 3 u: from 2 u to 47 u where that is done twice.
    - Images: 2e-4. In the chain, the rounding error of a point is multiplied by 2^(L-1) in its fastest code. Where the
      scene is so large or the weights are so steep that torch in float32 comes near 2e-4, a file may differ by four
      times the error of torch, because its sums have another order.

    Args:
        model: The student.
        poses: The poses of the comparison.
        points: Their points in float64.
        rounding: Largest error of an image that torch computes in float32.
    """
    origin = float(poses[:, :, 3].abs().max())
    ray = float(model.sampler.directions().norm(dim=-1).max())
    angle = 2 ** (model.embedder.num_frequencies - 1) * float(np.abs(points).max())
    if model.sampler.unbounded:
        of_points = _contracted_tolerance(model.sampler, origin, ray, points)
    else:
        of_points = 8 * _U * (origin + float(model.sampler.far) * ray)
    return Tolerances(
        points=of_points,
        codes=_U * (angle + 48),
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
