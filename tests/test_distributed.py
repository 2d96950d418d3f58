"""Two processes on CPUs train like one process on the same patches, and divide the work."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from builders import stub_teacher_config, tiny_student
from distributed_worker import RecordingTeacher, RecordingTrainer
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.utils import comms

from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.data.batches import check_batches
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher.frozen import TeacherConfig
from mobiler2l_ns.training.distributed import broadcast_from_main, gather, local_share

STEPS = 4


def write_teacher(capture: Path, folder: Path) -> Path:
    """A teacher's config.yml; the stub renders its views."""
    from mobiler2l_ns.method_configs import mobiler2l_teacher_small

    config = copy.deepcopy(mobiler2l_teacher_small.config)
    config.pipeline.datamanager.data = capture
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=capture)
    folder.mkdir()
    path = folder / "config.yml"
    path.write_text(yaml.dump(config))
    return path


def train_alone(config, weights=None, batches=None) -> RecordingTrainer:
    """Trains in this process, from given weights and on given batches if there are any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherConfig, "setup", lambda self, device: RecordingTeacher())
        trainer = RecordingTrainer(config)
        trainer.setup()
        if weights is not None:
            trainer.pipeline.model.load_state_dict(weights)
        if batches is not None:
            trainer.pipeline.datamanager.next_train = lambda step: batches[step]
        trainer.train()
    return trainer


def joined(*parts) -> tuple:
    """The batch that consists of the processes' parts: those with depth, which lead each part, lead it too."""
    with_depth = [torch.arange(len(image)) < len(depth) for *_, depth, image in parts]
    order = torch.cat(with_depth).long().argsort(descending=True, stable=True)
    *rays, alpha, depth, image = (torch.cat(tensors) for tensors in zip(*parts))
    origins, directions, area, norm, alpha, image = (tensor[order] for tensor in (*rays, alpha, image))
    return RayBundle(
        origins=origins, directions=directions, pixel_area=area, metadata={"directions_norm": norm}
    ), {"image": image, "alpha": alpha, "depth": depth}  # fmt: skip


def run_two_processes(folder: Path) -> str:
    """Starts distributed_worker.py twice, as a user would without GPUs, and returns what was printed."""
    here = Path(__file__).parent
    search = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(here / "distributed_worker.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": search, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.terminate()  # torchrun ends its workers; it would not get to it if it were killed
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def runs(capture, tmp_path_factory) -> SimpleNamespace:
    """What two processes found (``ranks``), and one process that was given the patches of both (``alone``)."""
    folder = tmp_path_factory.mktemp("distributed")
    config = tiny_student(capture, folder)
    config.pipeline.model.outputs = "rgbad"
    config.pipeline.model.precision = "fp32"  # bf16 would hide in its rounding what two processes do differently
    config.max_num_iterations, config.pipeline.model.export_when_done = STEPS, False
    options = config.pipeline.datamanager
    options.teacher.load_config = write_teacher(capture, folder / "teacher-0")

    started = train_alone(copy.deepcopy(config))
    shutil.copytree(started.checkpoint_dir, folder / "alone")

    shared = copy.deepcopy(config)
    shared.pipeline.model.export_when_done = True
    options = shared.pipeline.datamanager
    options.teacher.load_config, options.cache_dir = None, folder / "cache"
    options.teacher_share = options.filling_share = 0.9
    options.pool_views, options.initial_views, options.patches_per_batch = 7, 3, 6
    (folder / "config.pickle").write_bytes(pickle.dumps(shared))  # as nerfstudio hands it to its processes
    output = run_two_processes(folder)
    ranks = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]

    config.timestamp = "reference"
    config.pipeline.datamanager.patches_per_batch = 6  # the learning rates follow it
    batches = [joined(*parts) for parts in zip(*(rank["batches"] for rank in ranks))]
    reference = train_alone(config, ranks[0]["first_weights"], batches)
    return SimpleNamespace(folder=folder, ranks=ranks, alone=reference, started=started, output=output, config=shared)


def differences(a: dict, b: dict) -> float:
    """Largest difference of two dicts of tensors."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a if a[name].numel())


# -- the same training ----------------------------------------------------------------------------------------------


def test_two_processes_train_like_one(runs):
    """Up to float32: both add the same numbers in another order."""
    first, second = runs.ranks
    assert len(runs.alone.losses) == len(first["losses"]) == STEPS
    for step, loss in enumerate(runs.alone.losses):
        assert (first["losses"][step] + second["losses"][step]) / 2 == pytest.approx(loss, rel=1e-5)
        largest = max(float(g.abs().max()) for g in runs.alone.gradients[step].values())
        assert differences(first["gradients"][step], runs.alone.gradients[step]) < 1e-5 * largest
    final = runs.alone.weights()
    assert differences(first["weights"], final) < 1e-5
    assert differences(first["first_weights"], final) > 1e-3  # so far have they moved
    assert differences(first["weights"], second["weights"]) == 0
    # Neither process would have come there alone.
    assert abs(first["losses"][-1] - second["losses"][-1]) > 1e-4


def test_all_agree_on_what_the_student_is(runs):
    first, second = runs.ranks
    assert (first["camera"].near, first["camera"].far) == (second["camera"].near, second["camera"].far)
    assert (first["probes"], second["probes"]) == (24, 0)  # only the main process looked
    assert differences(first["first_weights"], second["first_weights"]) == 0
    assert float(second["first_weights"]["sampler.near"]) == pytest.approx(first["camera"].near)
    # Each process alone would have found another teacher.
    assert first["teacher"] == second["teacher"] == runs.folder / "teacher-0" / "config.yml"


# -- the work is shared ---------------------------------------------------------------------------------------------


def test_totals_are_divided(runs):
    """7 views kept, 3 rendered at first, and 6 patches, 3 of them from photos: the first process takes one more."""
    first, second = runs.ranks
    assert (first["capacity"], second["capacity"]) == (first["pictures"], second["pictures"]) == (4, 3)
    cameras = runs.alone.pipeline.datamanager.train_dataset.cameras.camera_to_worlds[:, :, 3]
    for rank, photos in ((first, 2), (second, 1)):
        for origins, *_, image in rank["batches"]:
            assert len(origins) == len(image) == 3
            assert (torch.cdist(origins[:, 0, 0], cameras).amin(dim=1) < 1e-5).sum() == photos


def test_no_view_is_rendered_twice(runs):
    first, second = (rank["poses"][:, :, 3] for rank in runs.ranks)
    assert torch.cdist(first, second).min() > 1e-3
    for mine, other in zip(*(rank["batches"] for rank in runs.ranks)):
        assert not mine[-1].equal(other[-1])


def test_views_are_rendered_in_the_same_steps(runs):
    """The second process's clock stands still, so it follows the first one's."""
    first, second = ([n - rank["views"][0] for n in rank["views"]] for rank in runs.ranks)
    assert first == second and first[-1] > 0
    assert runs.ranks[0]["views"][0] == runs.ranks[1]["views"][0] + 1 >= 2  # 3 initial views


def test_each_process_has_its_own_cache(runs):
    for rank, capacity in enumerate((4, 3)):
        header = json.loads((runs.folder / "cache" / f"rank-{rank}" / "pool.json").read_text())
        assert header["capacity"] == capacity
    assert sorted(p.name for p in (runs.folder / "cache").iterdir()) == ["rank-0", "rank-1"]


# -- one run --------------------------------------------------------------------------------------------------------


def run_folder(runs, rank: int) -> Path:
    (path,) = (runs.folder / f"outputs-{rank}").glob("*/*/run")
    return path


def test_only_the_main_process_writes(runs):
    assert [path.name for path in run_folder(runs, 1).iterdir()] == ["dataparser_transforms.json"]  # nerfstudio's
    written = {path.name for path in run_folder(runs, 0).iterdir()}
    assert {"config.yml", "distillation.json", "nerfstudio_models", "export"} <= written
    printed = " ".join(runs.output.split())
    assert printed.count("Pool: 4 teacher views of 32x32") == 2  # once for each of its two runs
    assert printed.count("in memory of each of 2 processes; also kept in") == 2


def test_statistics_are_those_of_all_processes(runs):
    found = json.loads((run_folder(runs, 0) / "distillation.json").read_text())
    assert found["steps"] == STEPS and found["processes"] == 2
    assert found["pool"]["views"] == sum(rank["views"][-1] for rank in runs.ranks)
    assert found["pool"]["capacity"] == 7 and found["pool"]["photos"] == 8
    assert found["pool"]["bytes"] == sum(rank["pool_bytes"] for rank in runs.ranks) + 2 * 8 * 32 * 32 * 4


def test_a_checkpoint_of_two_processes_loads_in_one(runs):
    path = run_folder(runs, 0) / "config.yml"
    model, step = load_model(path, "cpu")  # as ns-export-mobiler2l does
    assert step == STEPS - 1 and differences(model.state_dict(), runs.ranks[0]["weights"]) == 0
    pipeline = copy.deepcopy(runs.config.pipeline)
    pipeline.datamanager.data = runs.config.data
    pipeline = pipeline.setup(device="cpu", test_mode="test")  # as ns-eval and ns-viewer do
    (checkpoint,) = (path.parent / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint, weights_only=True)
    assert all(key.startswith("_model.module.") for key in state["pipeline"])
    pipeline.load_pipeline(state["pipeline"], state["step"])
    assert differences(pipeline.model.state_dict(), runs.ranks[0]["weights"]) == 0
    # And it goes on in one process, optimizers included.
    config = copy.deepcopy(runs.alone.config)
    config.load_dir, config.timestamp, config.max_num_iterations = checkpoint.parent, "resumed", 1
    resumed = train_alone(config)
    assert differences(resumed.first_weights, runs.ranks[0]["weights"]) == 0 and resumed.step == STEPS


def test_a_checkpoint_of_one_process_loads_in_two(runs):
    for rank in runs.ranks:
        assert differences(rank["resumed_weights"], runs.started.weights()) == 0


# -- small parts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch):
    """Makes this process one of several, for functions that do not communicate."""

    def be(rank: int, size: int) -> None:
        monkeypatch.setattr(comms, "get_rank", lambda: rank)
        monkeypatch.setattr(comms, "get_world_size", lambda: size)

    return be


def test_shares_by_hand(pretend):
    assert local_share(7) == 7
    for size, shares in ((2, [4, 3]), (3, [3, 2, 2]), (8, [1, 1, 1, 1, 1, 1, 1, 0])):
        for rank, share in enumerate(shares):
            pretend(rank, size)
            assert local_share(7) == share


def test_a_single_process_does_not_communicate():
    assert broadcast_from_main(lambda: "answer") == "answer" and gather("value") == ["value"]


def test_patches_that_do_not_divide_name_their_cure(pretend, capture, tmp_path):
    check_batches(25, 0.0)
    config = tiny_student(capture, tmp_path).pipeline.datamanager
    config.teacher = stub_teacher_config(None, tmp_path)
    config.patches_per_batch = 25
    pretend(1, 2)
    with pytest.raises(UserError, match="--pipeline.datamanager.patches-per-batch 25 .* 2 processes: pass 26.$"):
        config.setup(device="cpu", test_mode="val", world_size=2, local_rank=1)
