"""The parts of gpu.py: each measures one thing and returns its figures. Each runs in a process of its own.

A kernel or a compiler can fail in many ways. Each failure becomes an error among the figures, and the rest is measured.
"""

import functools
import importlib
import time
from typing import Callable, Dict, Optional

import torch
from make_demo_scene import make_demo_scene
from mobiler2l_ns.method_configs import mobiler2l_teacher_ngp, mobiler2l_teacher_splat

from bench import teacher as frozen_teachers
from bench.common import median_milliseconds, peak_memory
from bench.distillation import pairs, quality, student_pairs
from bench.equal_time import train_within
from bench.gpu_place import Place, save_picture
from bench.published_files import CUDA_PROVIDER, pipeline_call
from bench.runs import figures_of, trained
from bench.training import few_views, take_one_step, take_step
from mobiler2l_ns.data.time_budget import synchronize
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.onnx_files import trace_pipeline
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.teacher.frozen import FrozenTeacher
from mobiler2l_ns.teacher.kinds import missing_kernels
from mobiler2l_ns.trainer import DistillationTrainer

Part = Callable[[Place], Dict]
SPLAT_STEPS = 30000  # for which splatfacto's schedule is made


def environment(place: Place) -> Dict:
    """Versions, the GPU, and which packages of kernels are there."""
    packages = {}
    for name in ("gsplat", "nerfacc", "tinycudann", "triton", "onnxruntime"):
        try:
            packages[name] = getattr(importlib.import_module(name), "__version__", "present")
        except Exception as error:  # a kernel may fail to load in many ways
            packages[name] = f"missing: {type(error).__name__}: {str(error)[:100]}"
    found = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "packages": packages,
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,  # of steps in fp32
    }  # fmt: skip
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
        # Kernels without a wheel are compiled here, and not in the time of a training.
        models = [method.config.pipeline.model._target for method in (mobiler2l_teacher_splat, mobiler2l_teacher_ngp)]
        found["missing_kernels"] = [package for model in models if (package := missing_kernels(model))]
    return found


def scene(place: Place) -> Dict:
    """The demo scene's photos."""
    sizes = place.sizes
    counts = {"num_train": sizes.num_train, "num_val": 2, "num_test": sizes.num_photos}
    make_demo_scene(place.demo, resolution=sizes.side, **counts)
    return {"photos": sizes.num_train, "side": sizes.side}


def teacher(method: str, scene: str = "demo") -> Part:
    """A part that trains a teacher, and measures it frozen."""

    def part(place: Place) -> Dict:
        config = place.config(scene, method)
        config.max_num_iterations, config.steps_per_save = place.sizes.teacher_steps, 1000
        datamanager = config.pipeline.datamanager
        if place.sizes.teacher_rays is not None and hasattr(datamanager, "train_num_rays_per_batch"):
            datamanager.train_num_rays_per_batch = place.sizes.teacher_rays
        shorten_splats(config.pipeline.model, config.max_num_iterations)
        run = trained(config)
        figures = {**figures_of(run), "peak_memory_mb": round(peak_memory(place.device) / 1e6)}
        photos, found = place.held_out(scene), FrozenTeacher(run / "config.yml", place.device)
        figures.update(quality(pairs(found.render, photos)))
        synchronize(place.device)
        start = time.perf_counter()
        for camera, _ in photos:
            found.render(camera)
        synchronize(place.device)
        seconds = time.perf_counter() - start
        return {**figures, "rays_per_second": round(photos.images[..., 0].numel() / seconds)}

    return part


def shorten_splats(model, steps: int) -> None:
    """Fits splatfacto's schedule of 30,000 steps to a run of other length; other models are not changed.

    Otherwise a run of 4,000 steps would never see its photos in full resolution.
    """
    for name in ("resolution_schedule", "warmup_length", "stop_split_at", "stop_screen_size_at", "sh_degree_interval"):
        if hasattr(model, name):
            setattr(model, name, max(1, round(getattr(model, name) * steps / SPLAT_STEPS)))


def frozen(place: Place) -> Dict:
    """The frozen nerfacto beside the same weights in stock nerfstudio."""
    path = place.teacher("demo")
    photos = frozen_teachers.load_held_out(path, None, 4, place.sizes.side, place.device)
    return frozen_teachers.measure(path, photos, place.device)


def steps(place: Place) -> Dict:
    """Milliseconds of a training step of mobiler2l by precision and compiler, and the memory that it takes."""
    config = place.student("demo", "mobiler2l")
    few_views(config)
    run, trainer = take_one_step(config)
    variants = {"fp32": ("fp32", None), "bf16": ("bf16", None)}
    if place.sizes.compiles:
        variants["bf16, compiled"] = "bf16", "default"
        variants["bf16, compiled, CUDA graphs"] = "bf16", "reduce-overhead"
    found: Dict = {"pool_mb": round(run.pool_bytes / 1e6)}
    for name, variant in variants.items():
        try:
            found[name] = time_steps(place, trainer, *variant)
        except (Exception, UserError) as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return found


def time_steps(place: Place, trainer: DistillationTrainer, precision: str, compiler: Optional[str]) -> Dict:
    """Milliseconds of a step of a trainer, and the memory that it takes."""
    model, count = trainer.pipeline.model, place.sizes.timed_steps
    model.renderer.precision = precision
    if compiler is not None:
        model.network.compile(mode=compiler)
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for step in range(count):  # these include the compiler
        take_step(trainer, step)
    synchronize(place.device)
    start = time.perf_counter()
    for step in range(count):
        take_step(trainer, step)
    synchronize(place.device)
    milliseconds = round(1e3 * (time.perf_counter() - start) / count, 1)
    return {"milliseconds": milliseconds, "peak_memory_mb": round(peak_memory(place.device) / 1e6)}


def student(method: str, scene: str = "demo") -> Part:
    """A part that trains a student for a given time and draws it beside its teacher."""

    def part(place: Place) -> Dict:
        config = place.student(scene, method)
        config.save_config()
        seconds, probe_steps = place.sizes.student_seconds, place.sizes.timed_steps
        held_out = functools.partial(place.held_out, scene)
        run, trainer, photos = train_within(config, seconds, probe_steps, held_out, 8)
        trainer.config.save_config()
        trainer.save_checkpoint(run.curve[-1].step - 1)
        model, last = trainer.pipeline.model, run.curve[-1]
        picture = place.folder / f"{scene}-{method}.png"
        save_picture(picture, photos, model, trainer.pipeline.datamanager.teacher)
        return {
            "steps": last.step, "seconds": run.seconds, "teacher_seconds": run.teacher_seconds, "views": last.views,
            "parameters": run.parameters, "pool_mb": round(run.pool_bytes / 1e6),
            "peak_memory_mb": round(peak_memory(place.device) / 1e6), **quality(student_pairs(model, photos)),
            "picture": picture.name, "curve": [[point.step, point.seconds, point.psnr] for point in run.curve],
        }  # fmt: skip

    return part


def latency(place: Place) -> Dict:
    """Milliseconds of a view of both large students: in torch, and by onnxruntime where it has CUDA."""
    models = {method: untrained(place, method) for method in ("mobiler2l", "mobiler2l-compact")}
    dtypes = {"fp32": None, "bf16": torch.bfloat16}
    sides = {
        f"{method}, torch, {name}": render_call(place, model, dtype)
        for method, model in models.items() for name, dtype in dtypes.items()
    }  # fmt: skip
    median_milliseconds(sides, 3)  # warms up
    found: Dict = median_milliseconds(sides, 20)
    try:
        calls = {f"{method}, onnxruntime, fp32": on_cuda(model.copy_to_cpu()) for method, model in models.items()}
        median_milliseconds(calls, 3)
        found.update(median_milliseconds(calls, 20))
    except (Exception, UserError) as error:
        found["onnxruntime"] = f"{type(error).__name__}: {str(error)[:200]}"
    return found


def untrained(place: Place, method: str) -> MobileR2LModel:
    """A student of the demo scene after one step, without photos and their depth."""
    config = place.student("demo", method)
    few_views(config)
    datamanager = config.pipeline.datamanager
    datamanager.photo_share, datamanager.reprojected_share, datamanager.photo_depth = 0.0, 0.0, False
    datamanager.pool_views = datamanager.initial_views
    _, trainer = take_one_step(config)
    return trainer.pipeline.model.eval()


def on_cuda(model: MobileR2LModel) -> Callable[[], object]:
    """A function that renders a pose with a model's pipeline.onnx on the GPU."""
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise UserError(f"onnxruntime {onnxruntime.__version__} has no {CUDA_PROVIDER}: install onnxruntime-gpu.")
    return pipeline_call(trace_pipeline(model, "rgb", "fp32", 20), model, 0, CUDA_PROVIDER)


def render_call(place: Place, model, dtype: Optional[torch.dtype]) -> Callable[[], None]:
    """A function that renders a view in this number format; None: fp32."""
    camera = place.held_out("demo", model.size).cameras[:1]

    def render() -> None:
        with torch.no_grad(), torch.autocast(place.device.type, dtype or torch.bfloat16, dtype is not None):
            model.get_outputs_for_camera(camera)
        synchronize(place.device)

    return render


PARTS: Dict[str, Part] = {
    "environment": environment,
    "scene": scene,
    "teacher": teacher("mobiler2l-teacher"),
    "frozen": frozen,
    "steps": steps,
    "latency": latency,
    "student": student("mobiler2l"),
    "paper": student("mobiler2l-paper"),
    "compact": student("mobiler2l-compact"),
    "teacher-splat": teacher("mobiler2l-teacher-splat"),
    "teacher-ngp": teacher("mobiler2l-teacher-ngp"),
    "capture-teacher": teacher("mobiler2l-teacher", "capture"),
    "capture-student": student("mobiler2l", "capture"),
    "capture-splat": teacher("mobiler2l-teacher-splat", "capture"),
    "capture-ngp": teacher("mobiler2l-teacher-ngp", "capture"),
}
