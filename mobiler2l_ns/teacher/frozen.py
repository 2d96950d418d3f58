"""The frozen teacher: any nerfstudio run, loaded without its data set, that renders views for the student.

The differences between kinds of teachers are in ``kinds``.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Optional, Set, Tuple, Type

import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.models.base_model import Model
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.fitting import CROP_ONLY, fit_cameras, fit_image
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.teacher.adoption import Adoption, adopt, resolve_teacher
from mobiler2l_ns.teacher.fast_nerfacto import FastNerfacto, renders_as_nerfacto
from mobiler2l_ns.teacher.hash_encoding import accelerate_hash_grids
from mobiler2l_ns.teacher.kinds import (
    background,
    check_teacher,
    depth_is_z,
    final_outputs,
    ignores_lens,
    pose_refinement,
    show_mean_appearance,
)
from mobiler2l_ns.teacher.lens import render_through_lens
from mobiler2l_ns.teacher.teacher import Teacher
from mobiler2l_ns.training.distributed import broadcast_from_main
from mobiler2l_ns.training.memory import gpu_memory


@dataclass
class TeacherConfig(InstantiateConfig):
    """The radiance field that teaches the student."""

    _target: Type = field(default_factory=lambda: FrozenTeacher)
    load_config: Optional[Path] = None
    """config.yml of the teacher, any nerfstudio run; left out: the newest run on the same data, whose path is printed
    and saved in the student's config.yml."""
    search_dir: Path = Path("outputs")
    """Folder in which that run is searched for."""

    def setup(self, device) -> "Teacher":
        """Loads the teacher onto a device."""
        return self._target(self.load_config, device)

    def find(self, data: Path, dataparser: DataParserConfig, device) -> Adoption:
        """Sets ``load_config`` to the run to use and takes over its data parser.

        Args:
            data: The student's capture.
            dataparser: The student's data parser.
            device: Where the teacher will render.

        Raises:
            UserError: The run cannot be used, or none is found.
        """
        found = broadcast_from_main(lambda: resolve_teacher(self.load_config, data, self.search_dir).resolve())
        self.load_config = found
        return adopt(found, data, dataparser, device)


def load_teacher(config_path: Path, device) -> Tuple[Model, int]:
    """The model of a run and the step of its checkpoint.

    Raises:
        UserError: The run cannot be a teacher, cannot be rendered on this device, or cannot be loaded.
    """
    check_teacher(config_path, read_config(config_path), device)
    return load_model(config_path, device)


class FrozenTeacher:
    """A trained nerfstudio run as a Teacher.

    Args:
        config_path: The run's config.yml.
        device: Where it renders.

    Attributes:
        model: The run's model, frozen.
        step: Training step of its checkpoint.
        fast: Renders a nerfacto; None for other teachers, which nerfstudio renders.
        missing: Outputs that the model turned out not to have.
    """

    def __init__(self, config_path: Path, device):
        self.config_path = config_path
        self.model, self.step = load_teacher(config_path, device)
        show_mean_appearance(self.model)
        accelerate_hash_grids(self.model)
        self.fast = FastNerfacto(self.model) if renders_as_nerfacto(self.model) else None
        self.missing: Set[str] = set()
        moved = pose_refinement(self.model)
        if moved is not None:
            CONSOLE.print(
                f"The teacher moved its cameras by {moved[0]:.2g} units and {moved[1]:.2g} degrees on average, so "
                "photos at the given poses agree less with it: if that blurs, lower --pipeline.datamanager.photo-share "
                "and --pipeline.datamanager.reprojected-share."
            )

    @property
    def fingerprint(self) -> str:
        """Changes with the weights of the model."""
        crc = 0
        for tensor in self.model.state_dict().values():
            crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), crc)
        return f"step {self.step} crc {crc:08x}"

    @torch.no_grad()
    def render(self, camera: Cameras) -> Float[Tensor, "H W 3"]:
        return self._colours(self._outputs(camera))

    @torch.no_grad()
    def render_all(self, camera: Cameras) -> Float[Tensor, "H W 5"]:
        outputs = self._outputs(camera)
        rgb = self._colours(outputs)
        # A colour on white needs at least this alpha. nerfacto's last sample and a black sky belong to the scene.
        alpha = torch.maximum(outputs["accumulation"], 1 - rgb.amin(dim=-1, keepdim=True))
        return torch.cat([rgb, alpha, self._z(outputs, camera)], dim=-1)

    @torch.no_grad()
    def surface_depths(self, camera: Cameras) -> Float[Tensor, "N"]:
        z = self._z(self._outputs(camera), camera)
        if "depth" in self.missing:
            raise UserError(f"{self.config_path} renders no depth: pass --pipeline.datamanager.near-far.")
        return z[z > 0]

    def _colours(self, outputs: Dict[str, Tensor]) -> Float[Tensor, "H W 3"]:
        white = (1 - outputs["accumulation"]) * (1 - background(self.model, outputs))
        return (outputs["rgb"] + white).clamp(0, 1)

    def _z(self, outputs: Dict[str, Tensor], camera: Cameras) -> Float[Tensor, "H W 1"]:
        depth = outputs["depth"]
        if not depth_is_z(self.model):
            depth = depth / ray_lengths(camera.to(depth.device))
        # nerfacto's depth is where the ray becomes half opaque; where it does not, the value is arbitrary.
        return torch.where(outputs["accumulation"] > 0.5, depth, 0.0)

    def _outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        camera = camera.to(self.model.device)
        render = self.model.get_outputs_for_camera if self.fast is None else self.fast.outputs_for_camera
        try:
            outputs = self._final_outputs(render, camera)
        except torch.cuda.OutOfMemoryError:
            outputs = None  # inside of this handler the error would keep the tensors of the attempt
        if outputs is None:
            self._take_fewer_rays_at_a_time()
            smaller = "--pipeline.datamanager.pool-views or --pipeline.datamanager.tile-cells"
            with gpu_memory(f"a view of {self.config_path}", smaller):
                outputs = self._final_outputs(render, camera)
        if "rgb" not in outputs:
            raise UserError(f"{self.config_path} renders no rgb, only {', '.join(outputs)}: pass another teacher.")
        for name, value, instead in (("accumulation", 1.0, "counts as opaque"), ("depth", 0.0, "teaches no depth")):
            if name not in outputs:
                outputs[name] = torch.full_like(outputs["rgb"][..., :1], value)
                if name not in self.missing:
                    CONSOLE.print(f"The teacher renders no {name}: it {instead}.")
                    self.missing.add(name)
        return outputs

    def _final_outputs(self, render: Callable[[Cameras], Dict[str, Tensor]], camera: Cameras) -> Dict[str, Tensor]:
        return final_outputs(render_through_lens(render, camera) if ignores_lens(self.model) else render(camera))

    def _take_fewer_rays_at_a_time(self) -> None:
        torch.cuda.empty_cache()
        for chunked, name in ((self.fast, "chunk"), (self.model.config, "eval_num_rays_per_chunk")):
            if hasattr(chunked, name):
                setattr(chunked, name, max(1, getattr(chunked, name) // 4))


class CachedViews:
    """A teacher's views of held-out cameras, each rendered once, because a frozen teacher does not change.

    Args:
        load: Returns the teacher.
        max_side: Pixels of the longer side of a rendered view. A phone's full-size photo takes a laptop a minute.
    """

    def __init__(self, load: Callable[[], Teacher], max_side: int):
        self.load, self.max_side = load, max_side
        self.views: Dict[int, UInt8[Tensor, "h w 3"]] = {}

    def render(self, index: int, camera: Cameras) -> Float[Tensor, "H W 3"]:
        """The view of a camera (1,), resized to the camera's size.

        Args:
            index: The camera's number in its split.
            camera: The camera.
        """
        height, width = int(camera.height), int(camera.width)
        if index not in self.views:
            factor = self.max_side / max(height, width)
            factor = 1.0 if factor > CROP_ONLY else factor  # fit_cameras would crop the view
            small, _ = fit_cameras(camera, round(height * factor), round(width * factor))
            self.views[index] = (self.load().render(small) * 255).round().to(torch.uint8).cpu()
        return fit_image(self.views[index].float() / 255, height, width)
