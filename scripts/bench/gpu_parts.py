"""The parts of gpu.py: each measures one thing and returns its figures. Each runs in a process of its own."""

import functools
import importlib
import time
from typing import Callable, Dict, Optional

import torch
from make_demo_scene import make_demo_scene

from bench import teacher as frozen_teachers
from bench.common import median_milliseconds, peak_memory
from bench.distillation import pairs, quality, student_pairs
from bench.equal_time import train_within
from bench.gpu_place import Place, save_picture
from bench.published_files import pipeline_call
from bench.runs import figures_of, trained
from bench.training import train
from mobiler2l_ns.data.time_budget import synchronize
from mobiler2l_ns.export.onnx_files import trace_pipeline
from mobiler2l_ns.teacher.frozen import FrozenTeacher

Part = Callable[[Place], Dict]
CUDA_PROVIDER = "CUDAExecutionProvider"


def environment(place: Place) -> Dict:
    """Versions, the GPU, and which kernels are there."""
    kernels = {}
    for name in ("gsplat", "nerfacc", "tinycudann", "triton", "onnxruntime"):
        try:
            kernels[name] = getattr(importlib.import_module(name), "__version__", "present")
        except Exception as error:  # a kernel may fail to load in many ways
            kernels[name] = f"missing: {type(error).__name__}: {str(error)[:100]}"
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "kernels": kernels}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
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
        run = trained(config)
        photos, found = place.held_out(scene), FrozenTeacher(run / "config.yml", place.device)
        found.render(photos.cameras[:1])  # the first view includes what is set up once
        synchronize(place.device)
        start = time.perf_counter()
        views = list(pairs(found.render, photos))
        seconds = time.perf_counter() - start
        return {
            **figures_of(run),
            **quality(views),
            "rays_per_second": round(photos.images[..., 0].numel() / seconds),
            "peak_memory_mb": round(peak_memory(place.device) / 1e6),
        }

    return part


def frozen(place: Place) -> Dict:
    """The frozen nerfacto beside the same weights in stock nerfstudio."""
    path = place.teacher("demo")
    photos = frozen_teachers.load_held_out(path, None, 4, place.sizes.side, place.device)
    return frozen_teachers.measure(path, photos, place.device)


def steps(place: Place) -> Dict:
    """Milliseconds of a training step by precision and compiler, and the memory that it takes."""
    variants = {"fp32": ("fp32", None), "bf16": ("bf16", None)}
    if place.sizes.compiles:
        variants["bf16, compiled"] = "bf16", "default"
        variants["bf16, compiled, CUDA graphs"] = "bf16", "reduce-overhead"
    return {name: time_steps(place, *variant) for name, variant in variants.items()}


def time_steps(place: Place, precision: str, compiler) -> Dict:
    """Milliseconds of a step of mobiler2l, without teacher views."""
    config = place.student("demo", "mobiler2l")
    config.pipeline.model.precision = precision
    config.pipeline.datamanager.teacher_share = config.pipeline.datamanager.filling_share = 0.0
    config.max_num_iterations, config.pipeline.finetuning.steps = place.sizes.timed_steps, 0
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def score(trainer) -> float:  # the first call comes after a quarter of the steps
        if compiler is not None:
            trainer.pipeline.model.network.compile(mode=compiler)
        synchronize(place.device)
        return 0.0

    try:
        run, _ = train(config, 0, score, 4)
    except Exception as error:  # compilers fail in many ways, and the other variants go on
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    # The first quarter includes what is set up once, and the second one the compiler.
    before, last = run.curve[1], run.curve[-1]
    return {
        "milliseconds": round(1e3 * (last.seconds - before.seconds) / (last.step - before.step), 1),
        "peak_memory_mb": round(peak_memory(place.device) / 1e6),
        "pool_mb": round(run.pool_bytes / 1e6),
    }


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
    import onnxruntime

    sides: Dict[str, Callable] = {}
    for method in ("mobiler2l", "mobiler2l-compact"):
        config = place.student("demo", method)
        config.pipeline.datamanager.pool_views = config.pipeline.datamanager.initial_views = 2
        config.max_num_iterations, config.pipeline.finetuning.steps = 1, 0
        _, trainer = train(config, 0, lambda trainer: 0.0, 1)
        model = trainer.pipeline.model.eval()
        for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
            sides[f"{method}, torch, {name}"] = render_call(place, model, dtype)
        if CUDA_PROVIDER in onnxruntime.get_available_providers():
            exported = model.copy_to_cpu()
            graph = trace_pipeline(exported, "rgb", "fp32", 20)
            sides[f"{method}, onnxruntime, fp32"] = pipeline_call(graph, exported, 0, CUDA_PROVIDER)
    median_milliseconds(sides, 3)  # warms up
    return median_milliseconds(sides, 20)


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
