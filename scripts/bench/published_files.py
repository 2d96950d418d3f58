"""Three graphs shaped as MobileR2L's release writes them: Sampler, Embedder and network.

GELU is spelled out with Erf at opset 11, constants are repeated for each ray, and the host permutes the codes between
Embedder and network. h, w: ray grid; K: points a ray; L: frequencies.
"""

from typing import Callable, Dict, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import trace_network
from mobiler2l_ns.export.onnx_graph import trace
from mobiler2l_ns.student.viewing_range import viewing_range

CUDA_PROVIDER = "CUDAExecutionProvider"


class WideSampler(nn.Module):
    """Points of a camera from constants that are repeated for each ray.

    Args:
        sampler: Ours, for camera and depths.
    """

    def __init__(self, sampler: nn.Module):
        super().__init__()
        directions = sampler.directions()
        self.register_buffer("directions", directions[:, None].repeat(1, 3, 1)[None])  # (1, h*w, 3, 3)
        z = sampler.depths[:, None].repeat(1, 3).view(1, 1, 1, -1)
        self.register_buffer("z", z.repeat(1, 1, len(directions), 1))  # (1, 1, h*w, 3K)
        self.num_points = sampler.num_points

    def forward(self, c2w33: Tensor, c2w13: Tensor) -> Tensor:
        rays_d = (self.directions * c2w33).sum(-1)[None]
        return torch.cat([c2w13] * self.num_points, -1) + torch.cat([rays_d] * self.num_points, -1) * self.z


class WideEmbedder(nn.Module):
    """Sines and cosines of products with a table of the frequencies as large as the result.

    Args:
        num_frequencies: L.
        shape: h*w and 3K.
    """

    def __init__(self, num_frequencies: int, shape: Tuple[int, int]):
        super().__init__()
        powers = 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("table", powers.view(1, -1, 1, 1).repeat(1, 1, *shape))

    def forward(self, points: Tensor) -> Tensor:
        angles = points * self.table
        return torch.cat([torch.sin(angles), torch.cos(angles), points], dim=1)


def session(graph, threads: int, provider: str = "CPUExecutionProvider"):
    """An onnxruntime session of a ModelProto.

    Raises:
        UserError: onnxruntime took another provider than the one that was asked for.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    options = {"use_tf32": "0"} if provider == CUDA_PROVIDER else {}  # torch's fp32 has no TF32 either
    made = onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=[(provider, options)])
    if provider not in made.get_providers():
        raise UserError(f"onnxruntime cannot use its {provider}: its libraries are missing or of another version.")
    return made


def pipeline_call(graph, model, threads: int, provider: str = "CPUExecutionProvider") -> Callable[[], object]:
    """A function that renders a pose of the model's range with its pipeline.onnx."""
    files, feed = session(graph, threads, provider), {"c2w": viewing_range(model).sample(1).numpy()}
    return lambda: files.run(None, feed)


def reference_graphs(model) -> Dict[str, object]:
    """ModelProtos of the other side, unfolded."""
    (h, w), k = model.sampler.grid.tolist(), model.sampler.num_points
    pose = (torch.eye(3)[None, None], torch.zeros(1, 1, 1, 3))
    return {
        "sampler": trace(WideSampler(model.sampler), pose, ["c2w33", "c2w13"], "pts"),
        "embedder": trace(
            WideEmbedder(model.embedder.num_frequencies, (h * w, 3 * k)),
            (torch.zeros(1, 1, h * w, 3 * k),), ["rays"], "embbrays",
        ),
        "network": trace_network(model, model.network),
    }  # fmt: skip


def chain(sampler, embedder, network, c2w: np.ndarray) -> Callable[[], np.ndarray]:
    """What a host of three files does with a pose (3, 4)."""
    shape = network.get_inputs()[0].shape
    pose = {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]}

    def render() -> np.ndarray:
        (points,) = sampler.run(None, pose)
        (codes,) = embedder.run(None, {"rays": points})
        return network.run(None, {"input": codes.transpose(0, 3, 1, 2).reshape(shape)})[0]

    return render


def front(sampler, embedder, c2w: np.ndarray) -> Callable[[], np.ndarray]:
    """The two small graphs alone."""
    pose = {"c2w33": c2w[None, None, :, :3], "c2w13": c2w[None, None, None, :, 3]}
    return lambda: embedder.run(None, {"rays": sampler.run(None, pose)[0]})[0]
