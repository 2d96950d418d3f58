"""The rays of a frozen nerfacto rendered on a CPU by compiled loops, which touch each sample once.

The torch version of ``fast_nerfacto`` passes large temporaries from operator to operator. Here a block of rays goes
through all steps while it is in the CPU's cache, a ray ends when its transmittance is spent, and neighbouring samples
on a ray share one evaluation of the colour.

N: rays, E: edges of the intervals on a ray (number of samples + 1), R: cells along each axis of the grid.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, List, Tuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.mlp import MLP, MLPWithHashEncoding
from nerfstudio.fields.base_field import get_normalized_directions
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.ray_samplers import SpacedSampler, UniformLinDispPiecewiseSampler, UniformSampler
from torch import Tensor, nn

# Samples of a ray share one colour until they have this weight together.
GROUP_WEIGHT = 0.05
MIN_TRANSMITTANCE = 1e-3
# Rays that a thread takes at once.
CHUNK = 1 << 11

# Weight (outputs, inputs) and bias of a layer.
Layer = Tuple[Float[Tensor, "_ _"], Float[Tensor, "_"]]
# An MLP as ``fused_shading.forward`` takes it: flat weights, and each layer's rows, columns and offset.
Network = Tuple[Float32[np.ndarray, "_"], Int64[np.ndarray, "_ 3"]]


class FusedNerfacto:
    """Places and shades samples on rays as a ``FastNerfacto`` does.

    Args:
        field: A field that ``can_fuse``, on a CPU.
        sampler: A sampler that ``can_fuse``.
        grid: Density that guides the samples.
        last_sample: Whether the last sample of a ray extends to infinity.
        min_weight: Samples of smaller weight have no colour.
    """

    def __init__(
        self,
        field: NerfactoField,
        sampler: SpacedSampler,
        grid: Float[Tensor, "R R R"],
        last_sample: bool,
        min_weight: float,
    ):
        from mobiler2l_ns.teacher import fused_sampling, fused_shading

        self.sampling, self.shading = fused_sampling, fused_shading
        self.field, self.grid = field, grid.numpy()
        self.contract = field.spatial_distortion is not None
        self.piecewise = type(sampler) is UniformLinDispPiecewiseSampler
        self.network = _density_network(field)
        self.head, self.direction_layer = _colour_network(field)
        limits = (np.float32(value) for value in (GROUP_WEIGHT, min_weight, MIN_TRANSMITTANCE))
        self.options = (self.contract, last_sample, *limits)

    @torch.no_grad()
    def propose(
        self,
        rays_o: Float[Tensor, "N 3"],
        rays_d: Float[Tensor, "N 3"],
        near: Float[Tensor, "N 1"],
        far: Float[Tensor, "N 1"],
        count: int,
        padding: float,
        min_opacity: float,
    ) -> Tuple[Float[Tensor, "N {count}"], Float[Tensor, "N"]]:
        """Distances between which rays have equal weight by the grid, and their opacity by the grid.

        Rays of an opacity of at most ``min_opacity`` get arbitrary distances.

        Args:
            rays_o: Origins in the axes of the unit cube; world units in an unbounded scene.
            rays_d: Directions in the same axes.
            near: Start of the rays in the model's spacing.
            far: End of the rays in the model's spacing.
            count: Number of distances.
            padding: Weight that is spread over the whole ray.
            min_opacity: Of the rays to sample.
        """
        edges, opacity = torch.empty(len(rays_o), count), torch.empty(len(rays_o))
        arrays = _arrays(rays_o, rays_d, near[:, 0], far[:, 0])
        limits = np.float32(min_opacity), np.float32(MIN_TRANSMITTANCE)
        options = (self.grid, self.contract, self.piecewise, np.float32(padding), limits)
        results = edges.numpy(), opacity.numpy()
        _in_threads(
            lambda i: self.sampling.propose(*(a[i] for a in arrays), *options, *(r[i] for r in results)), len(rays_o)
        )
        return edges, opacity

    @torch.no_grad()
    def shade(
        self,
        rays_o: Float[Tensor, "N 3"],
        rays_d: Float[Tensor, "N 3"],
        directions: Float[Tensor, "N 3"],
        edges: Float[Tensor, "N E"],
    ) -> Tuple[Float[Tensor, "N 3"], Float[Tensor, "N 1"], Float[Tensor, "N 1"]]:
        """Colours without a background, accumulation and median distance of rays.

        Args:
            rays_o: Origins as in ``propose``.
            rays_d: Directions as in ``propose``.
            directions: Directions of unit length in world axes.
            edges: Distances between the samples' intervals.
        """
        base = self.direction_layer(self.field.direction_encoding(get_normalized_directions(directions)))
        rgb, opacity, depth = (torch.zeros(len(rays_o), *shape) for shape in ((3,), (), ()))
        arrays, results = _arrays(rays_o, rays_d, edges, base), (rgb.numpy(), opacity.numpy(), depth.numpy())
        options = (self.network, self.head, self.options)
        _in_threads(
            lambda i: self.shading.shade(*(a[i] for a in arrays), *options, *(r[i] for r in results)), len(rays_o)
        )
        return rgb, opacity[:, None], depth[:, None]


def can_fuse(field: NerfactoField, sampler: SpacedSampler) -> bool:
    """Whether a ``FusedNerfacto`` can render a field: it is on a CPU, numba works, and all parts are nerfacto's own."""
    model = getattr(field.mlp_base, "model", None)  # one module of tiny-cuda-nn, where that is installed
    parts = [*model] if isinstance(model, nn.Sequential) else []
    if [type(part) for part in parts] != [HashEncoding, MLP] or type(field.mlp_base) is not MLPWithHashEncoding:
        return False
    encoding, network, head = *parts, field.mlp_head
    return (
        type(head) is MLP
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in field.parameters())
        and all(part.tcnn_encoding is None for part in (encoding, network, head))
        and all(type(mlp.activation) is nn.ReLU and not mlp.skip_connections for mlp in (network, head))
        and network.out_activation is None
        and type(head.out_activation) is nn.Sigmoid
        and type(sampler) in (UniformSampler, UniformLinDispPiecewiseSampler)
        and _numba_works()
    )


def _numba_works() -> bool:
    try:
        from numba.core import config
    except Exception:  # a numba that does not fit numpy or the machine raises errors of several types
        return False
    return not config.DISABLE_JIT  # pyright: ignore[reportAttributeAccessIssue]


def _density_network(field: NerfactoField) -> Tuple:
    """The arguments ``field`` of ``fused_shading.shade``."""
    encoding, mlp = field.mlp_base.model
    assert isinstance(encoding, HashEncoding) and isinstance(mlp, MLP)
    table = encoding.hash_table.detach().view(encoding.num_levels, encoding.hash_table_size, -1)
    layers = _weights(mlp)
    if table.shape[2] % 2:
        # A zero feature is added to each level.
        weight = layers[0][0].view(len(layers[0][0]), encoding.num_levels, -1)
        layers[0] = nn.functional.pad(weight, (0, 1)).flatten(1), layers[0][1]
        table = nn.functional.pad(table, (0, 1))
    scalings = encoding.scalings.to(torch.float32).numpy()
    return table.contiguous().numpy(), scalings, _pack(layers), np.float32(field.average_init_density)


def _colour_network(field: NerfactoField) -> Tuple[Network, nn.Linear]:
    """The argument ``head`` of ``fused_shading.shade``, and the first layer for the directions' share of its input.

    The inputs are the direction, the geometry features and the appearance, which is the same for all rays.
    """
    first, *others = _weights(field.mlp_head)
    num_direction = field.direction_encoding.get_out_dim()
    direction, geometry, appearance = first[0].split(
        [num_direction, field.geo_feat_dim, first[0].shape[1] - num_direction - field.geo_feat_dim], dim=1
    )
    bias = first[1]
    if field.embedding_appearance is not None and field.use_average_appearance_embedding:
        bias = bias + appearance @ field.embedding_appearance.mean(dim=0).detach()
    height = _multiple_of_4(len(bias))
    layer = nn.Linear(num_direction, height).requires_grad_(False)
    layer.weight.zero_()[: len(bias)] = direction
    layer.bias.zero_()[: len(bias)] = bias
    # The density is the first of the density network's outputs.
    return _pack([(nn.functional.pad(geometry, (1, 0)), torch.zeros_like(bias)), *others]), layer


def _weights(mlp: MLP) -> List[Layer]:
    return [(layer.weight.detach(), layer.bias.detach()) for layer in mlp.layers if isinstance(layer, nn.Linear)]


def _pack(layers: List[Layer]) -> Network:
    """A network of layers with their weights and biases, padded to multiples of 4 with zeros."""
    flat, sizes, offset = [], [], 0
    for weight, bias in layers:
        rows, columns = (_multiple_of_4(size) for size in weight.shape)
        padded = torch.zeros(rows, columns + 1)
        padded[: weight.shape[0], : weight.shape[1]], padded[: len(bias), -1] = weight, bias
        flat += [padded[:, :-1].flatten(), padded[:, -1]]
        sizes.append((rows, columns, offset))
        offset += padded.numel()
    return torch.cat(flat).numpy(), np.array(sizes, dtype=np.int64)


def _multiple_of_4(size: int) -> int:
    return -(-size // 4) * 4


def _arrays(*tensors: Float[Tensor, "N *_"]) -> List[np.ndarray]:
    return [tensor.contiguous().numpy() for tensor in tensors]


def _in_threads(function: Callable[[slice], None], count: int) -> None:
    """Calls a function for parts of ``count`` rays, in as many threads as torch uses."""
    parts = [slice(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    threads = min(torch.get_num_threads(), len(parts))
    if threads < 2:
        for part in parts:
            function(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, parts))
