"""Teachers, students and runs that several test modules build."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional

import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from mobiler2l_ns.cameras import pinhole_cameras, student_rays
from mobiler2l_ns.data.student_camera import StudentCamera
from mobiler2l_ns.geometry import look_at
from mobiler2l_ns.model import MobileR2LModelConfig
from mobiler2l_ns.student.network import NetworkConfig
from mobiler2l_ns.teacher.adoption import Adoption
from mobiler2l_ns.teacher.frozen import TeacherConfig

# The camera of make_model, and the options of an orbit around the origin.
MODEL_CAMERA = {"height": 32, "width": 48, "focal": 60.0, "near": 3.0, "far": 5.0}
ORBIT = {"focus": torch.zeros(3), "focus_depths": (3.8, 4.2)}

# The camera and the network of make_student, and the kinds of students that are exported.
STUDENT_CAMERA = {"height": 48, "width": 72, "focal": 70.0, "near": 2.0, "far": 5.0}
UNBOUNDED = {
    **STUDENT_CAMERA,
    "far": 200.0,
    "points": "unbounded",
    "cube_centre": torch.tensor([0.1, -0.2, 0.3]),
    "cube_radius": 3.0,
}
SMALL_NETWORK = {"depth": 6, "width": 16, "sr_widths": (16, 8, 8)}
# For programs that take long for each operation or shape: coremltools, and SwiftShader with its shaders.
FEW_LAYERS = {"depth": 4, "sr_widths": (16, 8), "sr_strides": (2, 2)}
KINDS = {
    "gelu": {},
    "relu": {"activation": "relu"},
    "batch_norm": {"batch_norm": True},
    "unbounded": {"camera": UNBOUNDED, "sr_strides": (2, 2, 3)},
    "r2l": {"depth": 14, "sr_strides": (), "sr_widths": (), "activation": "relu"},
    "surface": {"surface_octaves": 8},
    "pruned": {"surface_octaves": 8, "inner_widths": (7, 0), "sr_inner_widths": (8, 0, 5, 8, 0, 0)},
    "surface_unbounded": {
        "camera": UNBOUNDED,
        "sr_strides": (2, 2, 3),
        "surface_octaves": 9,
        "refinements": 1,
        "activation": "relu",
    },
}

UP = torch.tensor([0.0, 0.0, 1.0])

BOX = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
GRIDS = {"hidden_dim": 8, "log2_hashmap_size": 6, "num_levels": 2, "max_res": 16, "use_linear": False}
TINY_NERFACTO = {
    "implementation": "torch", "num_levels": 2, "max_res": 32, "log2_hashmap_size": 6, "hidden_dim": 8,
    "hidden_dim_color": 8, "num_proposal_iterations": 1, "proposal_net_args_list": [GRIDS],
}  # fmt: skip


class StubTeacher(torch.nn.Module):
    """A ball at the origin on white, in closed form: each surface point has the colour 0.5 + 0.5 * normal.

    It is a module with a weight, so that it shows up in a state dict where a teacher does not belong.

    Args:
        radius: Of the ball.

    Attributes:
        renders: How many views it rendered.
        probes: How many views it rendered for their depths.
    """

    def __init__(self, radius: float = 1.0):
        super().__init__()
        self.radius = radius
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.renders = self.probes = 0

    def distances(self, origins: Tensor, directions: Tensor) -> Tensor:
        """First t with |origins + t * directions| = radius, (...), inf for a miss; directions of any length."""
        a = (directions**2).sum(-1)
        b = (origins * directions).sum(-1)
        c = (origins**2).sum(-1) - self.radius**2
        discriminant = b**2 - a * c
        t = (-b - discriminant.clamp_min(0).sqrt()) / a
        return torch.where((discriminant > 0) & (t > 0), t, torch.inf)

    def colours(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Colours (..., 3) that rays see."""
        t = self.distances(origins, directions)[..., None]
        hit = t.isfinite()
        normals = (origins + t.where(hit, torch.zeros(())) * directions) / self.radius
        return torch.where(hit, 0.5 + 0.5 * normals, 1.0)

    def render(self, camera: Cameras) -> Tensor:
        """The picture (H, W, 3) of one camera."""
        self.renders += 1
        rays = camera.generate_rays(0, keep_shape=True)
        return self.colours(rays.origins, rays.directions)

    def depths(self, origins: Tensor, directions: Tensor) -> Tensor:
        """z (..., 1) of what rays see, 0 for a miss; directions of unit depth."""
        t = self.distances(origins, directions)[..., None]
        return torch.where(t.isfinite(), t, 0.0)

    def render_all(self, camera: Cameras) -> Tensor:
        """The picture, its accumulation and z (H, W, 5) of one camera."""
        rays = camera.generate_rays(0, keep_shape=True)
        z = self.depths(rays.origins, rays.directions * rays.metadata["directions_norm"])
        return torch.cat([self.render(camera), (z > 0).float(), z], dim=-1)

    def surface_depths(self, camera: Cameras) -> Tensor:
        """z (N,) of the surface points that one camera sees."""
        self.probes += 1
        rays = camera.generate_rays(0, keep_shape=True)
        z = self.distances(rays.origins, rays.directions) / rays.metadata["directions_norm"][..., 0]
        return z[z.isfinite()]


def tiny_student(capture: Path, folder: Path):
    """mobiler2l-small on the capture, shrunk to a 4 x 4 ray grid and a few thousand weights; it writes to folder.

    It has no surface code and no reprojected views, so that its batches and bytes can be counted by hand.
    """
    from mobiler2l_ns.method_configs import mobiler2l_small

    config = copy.deepcopy(mobiler2l_small.config)
    config.data, config.output_dir, config.vis, config.timestamp = capture, folder / "outputs", "tensorboard", "run"
    config.machine.device_type = "cpu"
    network = config.pipeline.model.network
    network.depth, network.width, network.sr_widths, network.sr_strides = 6, 16, (8, 8, 8), (2, 2, 2)
    datamanager = config.pipeline.datamanager
    datamanager.data, datamanager.dataparser = capture, BlenderDataParserConfig(data=capture)
    datamanager.pool_views, datamanager.initial_views, datamanager.teacher_share = 4, 2, 0.0
    datamanager.filling_share = 0.0
    datamanager.patches_per_batch, datamanager.patch_cells = 4, 2
    config.pipeline.model.surface_octaves, config.pipeline.model.structure_weight = 0, 0.0
    datamanager.photo_share, datamanager.reprojected_share, datamanager.photo_depth = 0.5, 0.0, False
    config.pipeline.finetuning.validation_photos = 0
    return config


@dataclass
class StubTeacherConfig(TeacherConfig):
    """Plugs a teacher of the test into the datamanager.

    The teacher is an attribute of the class, so that it is not written to config.yml.
    """

    load: ClassVar[Optional[Callable[[], Any]]] = None

    def setup(self, device):
        """The teacher of the test."""
        return type(self).load()

    def find(self, data, dataparser, device) -> Adoption:
        """Searches nothing; the data parser stays as it is."""
        return Adoption(dataparser, False)


def stub_teacher_config(teacher, folder: Path) -> StubTeacherConfig:
    """The config of a teacher that is an object of the test.

    Args:
        teacher: The teacher.
        folder: The folder of its run, which need not exist.
    """
    StubTeacherConfig.load = staticmethod(lambda: teacher)
    return StubTeacherConfig(load_config=folder / "config.yml")


def make_model(network=None, outputs="rgb", **camera):
    """A small random student for 48 x 32 pixels."""
    torch.manual_seed(0)
    network = network or NetworkConfig(depth=4, width=8, sr_widths=(8, 8, 4))
    config = MobileR2LModelConfig(network=network, outputs=outputs, jitter_points=True)
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return config.setup(
        scene_box=box, num_train_data=1, metadata={"student_camera": StudentCamera(**{**MODEL_CAMERA, **camera})}
    ).eval()


def camera_at(distance: float, focal: float = 60.0, height: int = 32, width: int = 48):
    """A camera that looks at the origin from a distance."""
    position = torch.tensor([[0.6, 0.0, 0.8]]) * distance
    c2w = look_at(position, torch.zeros(1, 3), torch.tensor([0.0, 0.0, 1.0]))
    return pinhole_cameras(c2w, focal, height, width)


def constant_model(*channels, **metadata):
    """A student whose picture is the same everywhere."""
    model = make_model(outputs={3: "rgb", 4: "rgba", 5: "rgbad"}[len(channels)], **metadata)
    tail = model.network.tail[0]
    with torch.no_grad():
        tail.weight.zero_()
        tail.bias.copy_(torch.logit(torch.tensor(channels)))
    return model


def orbit_cameras(centre=(0.0, 0.0, 0.0), up=(0.0, 0.0, 1.0), azimuth=(30, 150), elevation=(20, 60)):
    """32 cameras at distance 2 to 3 from a centre; angles in degrees, ``up`` tilts only the cameras' upright."""
    azimuth = torch.deg2rad(torch.linspace(*azimuth, 8).repeat(4))
    elevation = torch.deg2rad(torch.linspace(*elevation, 4).repeat_interleave(8))
    flat = torch.stack([azimuth.cos(), azimuth.sin()], -1) * elevation.cos()[:, None]
    direction = torch.cat([flat, elevation.sin()[:, None]], -1)
    centre = torch.tensor(centre)
    position = centre + torch.linspace(2, 3, 32)[:, None] * direction
    return look_at(position, centre.expand(32, 3), torch.tensor(up))


def make_student(camera=STUDENT_CAMERA, steepness=0.0, outputs="rgb", surface_octaves=0, refinements=0, **network):
    """A student with random weights so large that its picture depends on every number of its input.

    Like a trained one, it leans less on a code the faster it is; steepness 1 leans on all alike.
    """
    torch.manual_seed(3)
    network = NetworkConfig(**{**SMALL_NETWORK, **network})
    config = MobileR2LModelConfig(
        network=network, outputs=outputs, surface_octaves=surface_octaves, surface_refinements=refinements
    )
    model = config.setup(
        scene_box=SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])),
        num_train_data=1,
        metadata={} if camera is None else {"student_camera": StudentCamera(**camera)},
    )
    with torch.no_grad():
        for module in (*model.network.modules(), *model.embedder.modules()):
            if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                module.weight.normal_(std=1.5 / math.sqrt(module.weight[0].numel()))
                module.bias.normal_(std=0.1)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
        code = torch.arange(312)
        if surface_octaves > 0:  # K points, then the sines, cosines and coordinates of the surface
            wave = torch.arange(6 * surface_octaves) // 3 % surface_octaves
            soften(model.network.head[0], torch.cat([torch.zeros(24), wave, torch.zeros(3)]), steepness)
            soften(model.embedder.head[0], torch.where(code < 288, code // 24 % 6, 0), steepness)
            for layers in model.embedder.refinements:
                wave = torch.cat([torch.arange(36) // 3 % 6, torch.zeros(3 + config.surface_width)])
                soften(layers[0], wave, steepness)
                layers[-1].weight.mul_(0.1)
        else:
            soften(model.network.head[0], torch.where(code % 13 < 12, code % 13 % 6, 0), steepness)
        model.network.tail[0].weight.mul_(0.1)  # greys, not only black and white
    return model.eval()


def soften(layer, octaves, steepness):
    """Makes a layer's weights smaller for faster codes; octaves are those of its input channels."""
    layer.weight.mul_((2.0 ** (octaves * (steepness - 1)))[:, None, None])


def write_run(folder, model=None, method="mobiler2l-small"):
    """A finished run on disk: config.yml and a checkpoint."""
    from mobiler2l_ns.method_configs import mobiler2l_small

    model = model or make_student()
    config = copy.deepcopy(mobiler2l_small.config)
    config.pipeline.model.num_points = model.sampler.num_points
    config.pipeline.model.num_frequencies = model.embedder.num_frequencies
    config.pipeline.model.surface_octaves = model.config.surface_octaves
    config.pipeline.model.surface_width = model.config.surface_width
    config.pipeline.model.surface_refinements = model.config.surface_refinements
    config.method_name, config.experiment_name = method, "lego"
    config.pipeline.model.network, config.pipeline.model.outputs = NetworkConfig(**SMALL_NETWORK), model.config.outputs
    checkpoints = folder / config.relative_model_dir
    checkpoints.mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.dump(config))
    state = {f"_model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"step": 7, "pipeline": state}, checkpoints / "step-000000007.ckpt")
    return folder / "config.yml"


def ring(azimuths, elevations=(0.0,), radii=(2.0,), centre=(0.0, 0.0, 0.0)):
    """Cameras at these angles in degrees and distances that look at a centre."""
    centre = torch.tensor(centre)
    offsets = []
    for a in azimuths:
        for e in elevations:
            for r in radii:
                a_, e_ = math.radians(a), math.radians(e)
                offsets.append([r * math.cos(e_) * math.cos(a_), r * math.cos(e_) * math.sin(a_), r * math.sin(e_)])
    position = centre + torch.tensor(offsets)
    return look_at(position, centre.expand_as(position), UP)


def save_run(folder, config, model, step=7, prefix="_model."):
    """A run's config.yml and checkpoint, written by hand."""
    checkpoints = folder / "nerfstudio_models"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.dump(config))
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({"step": step, "pipeline": state}, checkpoints / f"step-{step:09d}.ckpt")
    return folder / "config.yml"


def one_sentence(caught) -> str:
    """The message of a caught UserError, which must be a single sentence."""
    message = str(caught.value)
    assert message.startswith("mobiler2l: ") and message.endswith(".") and "\n" not in message
    return message


def pixel_rays(bundle: RayBundle, s: int = 8):
    """Rays (B, h*s, w*s, 3) through all pixels of patches: student directions are linear in the pixel's position."""
    origins, cells = student_rays(bundle)
    h, w = bundle.shape[1:]
    down, right = cells[:, 1:2, :1] - cells[:, :1, :1], cells[:, :1, 1:2] - cells[:, :1, :1]
    rows, columns = ((torch.arange(n * s) + 0.5) / s - 0.5 for n in (h, w))
    directions = cells[:, :1, :1] + rows.view(1, -1, 1, 1) * down + columns.view(1, 1, -1, 1) * right
    return origins[:, :1, :1].expand_as(directions), directions
