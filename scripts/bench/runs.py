"""Runs of benchmarks that are kept: each is trained once, and goes on where it was interrupted."""

import gc
import json
import time
from pathlib import Path
from typing import Dict

from nerfstudio.engine.trainer import TrainerConfig

from bench.common import console
from mobiler2l_ns.checkpoints import checkpoint_paths, num_steps
from mobiler2l_ns.trainer import forget_writers, go_on
from mobiler2l_ns.training.random_state import seed_all

FIGURES = "bench.json"  # written beside config.yml when a run has ended


def trained(config: TrainerConfig) -> Path:
    """The folder of a run, trained to its end.

    Args:
        config: Its data, output_dir, experiment_name and timestamp name the folder. It is changed if the run goes on.
    """
    folder, steps = config.get_base_dir(), config.max_num_iterations
    if (folder / FIGURES).is_file():
        return folder
    saved, done = checkpoint_paths(folder / "config.yml", config), 0
    if saved:
        done = num_steps(saved[-1])
        go_on(config, saved[-1])
    console.print(f"{folder}: {steps - done} steps")
    config.save_config()
    gc.collect()  # an earlier trainer is in a circle of references, and its views take gigabytes
    seed_all(config.machine.seed)
    start = time.perf_counter()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup("val")
    trainer.train()
    forget_writers()
    figures = {"steps": steps, "seconds": round(time.perf_counter() - start, 1), "resumed_at": done}
    (folder / FIGURES).write_text(json.dumps(figures) + "\n")
    return folder


def figures_of(folder: Path) -> Dict:
    """Steps and seconds of a run that has ended; the seconds are those since its last interruption."""
    return json.loads((folder / FIGURES).read_text())
