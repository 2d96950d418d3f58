"""Embedder with a surface code: rays that meet one point of a surface share a code. Exported; torch only.

K points at fixed depths describe a ray, but not what it meets: the codes of two rays that meet at a surface have
nothing in common there. So a small network predicts where a ray meets a surface, and the light field gets the
positional code of that point, at many octaves, beside the plain coordinates of the K points.

h, w: ray grid; hw: its rays, h*w; K: points per ray; L: octaves from which the surface is predicted; S: octaves of the
surface code.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mobiler2l_ns.student.embedder import code_parts, positional_code
from mobiler2l_ns.student.network import NetworkConfig, ResidualBlock


class SurfaceEmbedder(nn.Module):
    """K points of a ray to their coordinates and the code of the point where the ray meets a surface.

    The surface is a mean of the K points. Its weights are a softmax over the K points, predicted by 1x1 convolutions
    from the points' own codes. All operators are documented by SnapML.

    Args:
        num_points: K.
        num_frequencies: L.
        surface_octaves: S.
        width: Channels of the convolutions.
        num_blocks: Residual blocks between the first and the last convolution.
    """

    spread: Float[Tensor, "K3 K 1 1"]
    gather: Float[Tensor, "3 K3 1 1"]
    places: Float[Tensor, "1 K 1 1"]

    def __init__(
        self, num_points: int, num_frequencies: int, surface_octaves: int, width: int = 64, num_blocks: int = 2
    ):
        super().__init__()
        self.num_points, self.num_frequencies = num_points, num_frequencies
        self.surface_octaves = surface_octaves
        self.num_codes = 1  # of each channel, as the channels are codes already
        self.out_channels = 3 * num_points + 3 * (2 * surface_octaves + 1)
        config = NetworkConfig(activation="relu")  # runs on every backend of SnapML
        self.head = nn.Sequential(
            nn.Conv2d(3 * num_points * (2 * num_frequencies + 1), width, 1),
            nn.ReLU(),
            *[ResidualBlock(width, width, config) for _ in range(num_blocks)],
            nn.Conv2d(width, num_points, 1),
        )
        # Convolutions with zeros and ones: each weight to three coordinates, and the sum of K points.
        points, axes = torch.eye(num_points), torch.eye(3)
        self.register_buffer("spread", points.repeat_interleave(3, dim=0)[..., None, None], persistent=False)
        self.register_buffer("gather", axes.repeat(1, num_points)[..., None, None], persistent=False)
        self.register_buffer("places", torch.linspace(0, 1, num_points)[None, :, None, None], persistent=False)

    def predict(
        self, points: Float[Tensor, "B 3*{self.num_points} h w"]
    ) -> Tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B 1 h w"]]:
        """Where rays meet a surface.

        Args:
            points: Coordinates of the K points; channel 3k + axis.

        Returns:
            The point, in the coordinates of the K points; and its normalised depth: 0 at the first of the K points, 1
            at the last.
        """
        weights = torch.softmax(self.head(positional_code(points, self.num_frequencies)), dim=1)
        return self._mean(points, weights), F.conv2d(weights, self.places)

    def _mean(
        self, points: Float[Tensor, "B 3*{self.num_points} h w"], weights: Float[Tensor, "B {self.num_points} h w"]
    ) -> Float[Tensor, "B 3 h w"]:
        return F.conv2d(points * F.conv2d(weights, self.spread), self.gather)

    def encode_with_depth(
        self, points: Float[Tensor, "B 3*{self.num_points} h w"]
    ) -> Tuple[Float[Tensor, "B {self.out_channels} h w"], Float[Tensor, "B 1 h w"]]:
        """The network's input, and the normalised depth of the surface."""
        surface, depth = self.predict(points)
        return torch.cat([points, positional_code(surface, self.surface_octaves)], dim=1), depth

    def encode(self, points: Float[Tensor, "B 3*{self.num_points} h w"]) -> Float[Tensor, "B {self.out_channels} h w"]:
        """The network's input from points whose coordinates are channels."""
        return self.encode_with_depth(points)[0]

    def forward(
        self, points: Float[Tensor, "B 1 hw 3*{self.num_points}"]
    ) -> Float[Tensor, "B 1 hw {self.out_channels}"]:
        """The network's input in the layout of the exported file, see ``to_network_input``.

        The same as ``encode``, in operators as SnapML documents them. A constant cannot broadcast over channels and
        pixels at once, so constants multiply tensors with one channel. In opset 11, which Lens Studio reads, a
        softmax is one over its axis and all axes after it, so the points of a ray are the second and last axis.
        """
        codes = torch.cat(code_parts(points, self.num_frequencies), dim=3)
        logits = self.head(codes.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, 1, hw, K)
        weights = torch.softmax(logits.reshape(-1, self.num_points), dim=1).reshape(logits.shape)
        surface = self._mean(points.permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.cat([points, *code_parts(surface, self.surface_octaves)], dim=3)
