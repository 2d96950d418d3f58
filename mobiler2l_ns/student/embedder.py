"""Positional code of the points. Exported as Embedder.onnx; torch only.

h, w: ray grid; hw: its rays, h*w; K: points per ray; L: frequencies. The code of a number x is
sin(2^0 x) ... sin(2^(L-1) x), cos(2^0 x) ... cos(2^(L-1) x), x  (Mildenhall et al. 2020, Eq. 4, without pi).
"""

from typing import List

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Embedder(nn.Module):
    """Sines and cosines at L octaves, and the coordinate itself.

    Args:
        num_frequencies: L.
    """

    def __init__(self, num_frequencies: int):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.num_codes = 2 * num_frequencies + 1

    def forward(self, points: Float[Tensor, "B A *rest"]) -> Float[Tensor, "B A*{self.num_codes} *rest"]:
        """Codes of coordinates, concatenated along the second axis: (B, 1, hw, 3K) to (B, 2L+1, hw, 3K)."""
        return positional_code(points, self.num_frequencies)

    def encode(self, points: Float[Tensor, "B A h w"]) -> Float[Tensor, "B A*{self.num_codes} h w"]:
        """Codes of points whose coordinates are channels, for a graph in which nothing is permuted."""
        return self(points)


def positional_code(
    x: Float[Tensor, "B A *rest"], num_frequencies: int
) -> Float[Tensor, "B A*(2*{num_frequencies}+1) *rest"]:
    """Codes of numbers, concatenated along the second axis, see ``code_parts``."""
    return torch.cat(code_parts(x, num_frequencies), dim=1)


def code_parts(x: Float[Tensor, "*shape"], num_frequencies: int) -> List[Float[Tensor, "*shape"]]:
    """Codes of numbers: L sines, L cosines, and the numbers themselves.

    Sine and cosine are slow on every device. So they are computed for every third octave, and the octaves between
    follow by doubling the angle, which is as accurate as float32 arithmetic on an angle of that size.

    Args:
        x: The numbers.
        num_frequencies: L.
    """
    sines, cosines = [], []
    sine = cosine = x  # replaced at level 0
    for level in range(num_frequencies):
        if level % 3 == 0:
            angle = x * float(2**level)
            sine, cosine = torch.sin(angle), torch.cos(angle)
        else:
            sine, cosine = sine * cosine * 2.0, sine * sine * -2.0 + 1.0
        sines.append(sine)
        cosines.append(cosine)
    return [*sines, *cosines, x]


def to_network_input(
    codes: Float[Tensor, "B codes hw coordinates"], h: int, w: int
) -> Float[Tensor, "B coordinates*codes {h} {w}"]:
    """Codes (B, 2L+1, hw, 3K) as the network's input (B, 3K(2L+1), h, w), channel = coordinate * (2L+1) + code.

    On a host with (H, W, C) memory, such as SnapML, this is a plain copy.
    """
    b, num_codes, _, num_coordinates = codes.shape
    return codes.permute(0, 3, 1, 2).reshape(b, num_coordinates * num_codes, h, w)
