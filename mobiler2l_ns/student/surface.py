"""Embedder with a surface code: rays that meet one point of a surface share a code. Exported; torch only.

K points at fixed depths describe a ray, but not what it meets: the codes of two rays that meet at a surface have
nothing in common there. So a small network predicts where a ray meets a surface, and the light field gets the
positional code of that point, at many octaves, beside the plain coordinates of the K points.

That prediction is one of a ray, so each view must learn it anew. A refinement looks up the predicted point itself: its
code tells how far the surface is from there along the ray. That is the same for all rays through a place.

h, w: ray grid; hw: its rays, h*w; K: points per ray; L: octaves from which the surface is predicted; S: octaves of the
surface code; R: refinements.
"""

from typing import Callable, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mobiler2l_ns.student.embedder import code_parts, positional_code
from mobiler2l_ns.student.network import NetworkConfig, ResidualBlock

REFINEMENT_OCTAVES = 6  # of the code of the point that is refined


class SurfaceEmbedder(nn.Module):
    """K points of a ray to their coordinates and the code of the point where the ray meets a surface.

    The surface is a mean of the K points. Its weights are a softmax over the K points, predicted by 1x1 convolutions
    from the points' own codes. A refinement adds a predicted difference to the depth, and the surface becomes the mean
    of the two points between which that depth lies. All operators are documented by SnapML.

    Args:
        num_points: K.
        num_frequencies: L.
        surface_octaves: S.
        width: Channels of the convolutions.
        num_refinements: R.
        num_blocks: Residual blocks between the first and the last convolution.
    """

    spread: Float[Tensor, "K3 K 1 1"]
    gather: Float[Tensor, "3 K3 1 1"]
    places: Float[Tensor, "1 K 1 1"]
    ramps: Float[Tensor, "K 1 1 1"]
    ramp_starts: Float[Tensor, "K"]
    hats: Float[Tensor, "K K 1 1"]
    first_hat: Float[Tensor, "K"]

    def __init__(
        self, num_points: int, num_frequencies: int, surface_octaves: int, width: int = 64, num_refinements: int = 0,
        num_blocks: int = 2,
    ):  # fmt: skip
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
        self.refinements = nn.ModuleList([refinement(width) for _ in range(num_refinements)])
        # Convolutions with zeros and ones: each weight to three coordinates, and the sum of K points.
        points, axes = torch.eye(num_points), torch.eye(3)
        self._keep("spread", points.repeat_interleave(3, dim=0)[..., None, None])
        self._keep("gather", axes.repeat(1, num_points)[..., None, None])
        self._keep("places", torch.linspace(0, 1, num_points)[None, :, None, None])
        # relu(d - k) for each k, and their differences: linear interpolation at d = (K - 1) depth.
        self._keep("ramps", torch.full((num_points, 1, 1, 1), num_points - 1.0))
        self._keep("ramp_starts", -torch.arange(float(num_points)))
        hats = torch.diag(torch.ones(num_points - 1), 1) + torch.diag(torch.ones(num_points - 1), -1) - 2 * points
        hats[0, 0] = hats[-1, -1] = -1
        self._keep("hats", hats[..., None, None])
        self._keep("first_hat", points[0].clone())

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values, persistent=False)  # it follows from K

    def predict(
        self, points: Float[Tensor, "B 3*{self.num_points} h w"]
    ) -> Tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B R1 h w"]]:
        """Where rays meet a surface.

        Args:
            points: Coordinates of the K points; channel 3k + axis.

        Returns:
            The point, in the coordinates of the K points; and its normalised depth, as it was predicted first and after
            each of the R refinements: 0 at the first of the K points, 1 at the last.
        """
        return self._locate(
            points,
            positional_code(points, self.num_frequencies),
            lambda logits: torch.softmax(logits, dim=1),
            lambda surface: positional_code(surface, REFINEMENT_OCTAVES),
        )

    def _locate(
        self,
        points: Float[Tensor, "B 3*{self.num_points} h w"],
        codes: Float[Tensor, "B codes h w"],
        softmax: Callable[[Tensor], Tensor],
        code: Callable[[Tensor], Tensor],
    ) -> Tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B R1 h w"]]:
        """``predict``, with the arithmetic of two layouts: a softmax over channels, and the code of a point."""
        features = self.head[:-1](codes)
        weights = softmax(self.head[-1](features))
        depths = [F.conv2d(weights, self.places)]
        for refine in self.refinements:
            surface = self._mean(points, weights)
            depths.append(depths[-1] + refine(torch.cat([code(surface), features], dim=1)))
            weights = self._interpolate(depths[-1])
        return self._mean(points, weights), torch.cat(depths, dim=1)

    def _interpolate(self, depth: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B {self.num_points} h w"]:
        """Weights of the two points between which a normalised depth lies; of the first or last point beyond them."""
        ramps = F.relu(F.conv2d(depth, self.ramps, self.ramp_starts))
        return F.conv2d(ramps, self.hats, self.first_hat)

    def _mean(
        self, points: Float[Tensor, "B 3*{self.num_points} h w"], weights: Float[Tensor, "B {self.num_points} h w"]
    ) -> Float[Tensor, "B 3 h w"]:
        return F.conv2d(points * F.conv2d(weights, self.spread), self.gather)

    def encode_with_depth(
        self, points: Float[Tensor, "B 3*{self.num_points} h w"]
    ) -> Tuple[Float[Tensor, "B {self.out_channels} h w"], Float[Tensor, "B R1 h w"]]:
        """The network's input, and the normalised depths of the surface, see ``predict``."""
        surface, depths = self.predict(points)
        return torch.cat([points, positional_code(surface, self.surface_octaves)], dim=1), depths

    def encode(self, points: Float[Tensor, "B 3*{self.num_points} h w"]) -> Float[Tensor, "B {self.out_channels} h w"]:
        """The network's input from points whose coordinates are channels."""
        return self.encode_with_depth(points)[0]

    def forward(
        self, points: Float[Tensor, "B 1 hw 3*{self.num_points}"]
    ) -> Float[Tensor, "B 1 hw {self.out_channels}"]:
        """The network's input in the layout of the exported file, see ``to_network_input``.

        The same as ``encode``, in operators as SnapML documents them. A constant cannot broadcast over channels and
        pixels at once, so constants multiply tensors with one channel. In opset 11, which Lens Studio reads, a softmax
        is one over its axis and all axes after it, so the points of a ray are the second and last axis.
        """
        surface, _ = self._locate(
            points.permute(0, 3, 1, 2),
            torch.cat(code_parts(points, self.num_frequencies), dim=3).permute(0, 3, 1, 2),
            _softmax_of_rows,
            _code_of_rows,
        )
        return torch.cat([points, *code_parts(surface.permute(0, 2, 3, 1), self.surface_octaves)], dim=3)


def _softmax_of_rows(logits: Float[Tensor, "B K 1 hw"]) -> Float[Tensor, "B K 1 hw"]:
    """A softmax over channels, of a matrix with a row for each ray."""
    rows = logits.permute(0, 2, 3, 1)
    weights = torch.softmax(rows.reshape(-1, rows.shape[3]), dim=1)
    return weights.reshape(rows.shape).permute(0, 3, 1, 2)


def _code_of_rows(surface: Float[Tensor, "B 3 1 hw"]) -> Float[Tensor, "B codes 1 hw"]:
    """The code for a refinement, computed where there is one channel."""
    return torch.cat(code_parts(surface.permute(0, 2, 3, 1), REFINEMENT_OCTAVES), dim=3).permute(0, 3, 1, 2)


def refinement(width: int) -> nn.Sequential:
    """A small network from the code of a point and ``width`` features of its ray to a difference of depth."""
    last = nn.Conv2d(width, 1, 1)
    with torch.no_grad():  # starts near zero
        assert last.bias is not None
        last.weight.mul_(0.1)
        last.bias.zero_()
    codes = 3 * (2 * REFINEMENT_OCTAVES + 1)
    return nn.Sequential(nn.Conv2d(codes + width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), last)
