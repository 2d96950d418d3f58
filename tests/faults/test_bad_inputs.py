"""Bad inputs, one case each: the command ends with one documented sentence and exit code 1, and no file changes."""

import functools
import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from builders import make_student, one_sentence, save_run, tiny_student, write_run
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.pruning.command import PruneMobileR2L

ROOT = Path(__file__).parents[2]


class Place:
    """A folder with a capture, a teacher, a student and an export, and the commands that use them.

    Attributes:
        options: Of the student's datamanager, by their names.
        model: Of the student's model.
        resume: Of the trainer's config.
    """

    def __init__(self, folder: Path):
        self.folder, self.options, self.model, self.resume = folder, {}, {}, {}
        self.data, self.dataparser = folder / "capture", BlenderDataParserConfig
        self.teacher, self.student = folder / "teacher" / "config.yml", folder / "lego" / "mobiler2l-small" / "run"

    def edit(self, name: str, change) -> None:
        """Changes a JSON file of the capture."""
        path = self.data / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def checkpoint(self, run: Path) -> Path:
        (path,) = (run / "nerfstudio_models").iterdir()
        return path

    def train(self) -> None:
        """ns-train mobiler2l-small, up to the first step."""
        config = tiny_student(self.data, self.folder)
        config.data = config.pipeline.datamanager.data = self.data
        config.pipeline.datamanager.dataparser = self.dataparser(data=self.data)
        config.pipeline.datamanager.teacher.load_config = self.teacher
        config.pipeline.datamanager.teacher.search_dir = self.folder / "outputs"
        for target, values in (
            (config.pipeline.datamanager, self.options), (config.pipeline.model, self.model), (config, self.resume)
        ):  # fmt: skip
            for name, value in values.items():
                setattr(target, name, value)
        config.setup(local_rank=0, world_size=1).setup()

    def export(self, **options) -> None:
        """ns-export-mobiler2l."""
        arguments = {"load_config": self.student, "output_dir": self.folder / "files", "num_views": 0, **options}
        ExportMobileR2L(**arguments).export()

    def prune(self, **options) -> None:
        """ns-prune-mobiler2l."""
        PruneMobileR2L(**{"load_config": self.student, **options}).main()


@pytest.fixture
def place(capture, tiny_teacher, tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    place, (config, model) = Place(tmp_path / "place"), tiny_teacher
    shutil.copytree(capture, place.data)
    config.data = config.pipeline.datamanager.data = place.data
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=place.data)
    save_run(place.teacher.parent, config, model)
    write_run(place.student, make_student())
    return place


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def infect(place: Place, run: Path) -> None:
    path = place.checkpoint(run)
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "evil": Evil()}, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first_photo(place: Place) -> Path:
    return sorted((place.data / "train").glob("*.png"))[0]


def set_entry(frames: list, value: float) -> None:
    frames[2]["transform_matrix"][0][3] = value


def teacher_names(place: Place, name: str) -> None:
    place.teacher.write_text(place.teacher.read_text() + f"evil: !!python/object/apply:{name} ['touch pwned']\n")


def nan_weights(place: Place) -> None:
    path = place.checkpoint(place.student)
    saved = torch.load(path, weights_only=True)
    saved["pipeline"]["_model.network.tail.0.bias"].fill_(torch.nan)
    torch.save(saved, path)


def without_camera(place: Place) -> None:
    shutil.rmtree(place.student)
    write_run(place.student, make_student(camera=None))


def other_weights(place: Place) -> None:
    path = place.checkpoint(place.teacher.parent)
    saved = torch.load(path, weights_only=True)
    del saved["pipeline"][next(name for name in saved["pipeline"] if name.startswith("_model.field."))]
    torch.save(saved, path)


def student_with(name: str, **values):
    """Sets fields of the place's attribute ``name`` and trains."""

    def run(place: Place) -> None:
        getattr(place, name).update(values)
        place.train()

    return run


def transforms(content: str):
    """A capture in nerfstudio's own format whose transforms.json has this content."""

    def run(place: Place) -> None:
        # With an option of its own: otherwise the teacher's parser is taken over.
        place.dataparser = functools.partial(NerfstudioDataParserConfig, train_split_fraction=0.8)
        shutil.rmtree(place.data)
        place.data.mkdir()
        (place.data / "transforms.json").write_text(content)
        place.before = snapshot(place.folder)
        place.train()

    return run


def after(prepare, command="train", **options):
    """Damages the place, and then runs a command."""

    def run(place: Place) -> None:
        prepare(place)
        place.before = snapshot(place.folder)
        getattr(place, command)(**options)

    return run


CASES = {
    # Data
    "no capture": (student_with("__dict__", data=Path("nowhere")), "there is no nowhere"),
    "no transforms": (transforms("")  , "cannot be read as"),
    "transforms of something else": (transforms("[]"), "cannot be read as"),
    "no frames": (after(lambda p: p.edit("transforms_train.json", lambda t: t.update(frames=[]))), "cannot be read as"),
    "transforms without frames": (transforms('{"frames": []}'), "cannot be read as nerfstudio-data"),
    "a pose of NaN": (
        after(lambda p: p.edit("transforms_train.json", lambda t: set_entry(t["frames"], float("nan")))),
        "has a NaN",
    ),
    "an infinite pose": (
        after(lambda p: p.edit("transforms_train.json", lambda t: set_entry(t["frames"], float("inf")))),
        "an infinite number",
    ),
    "a focal length of NaN": (
        after(lambda p: p.edit("transforms_train.json", lambda t: t.update(camera_angle_x=float("nan")))),
        "no focal length",
    ),
    "a photo that is gone": (after(lambda p: first_photo(p).unlink()), "cannot be read"),
    "a photo that was cut short": (after(lambda p: cut(first_photo(p))), "cannot be read"),
    "a photo of text": (after(lambda p: first_photo(p).write_text("me")), "cannot be read"),
    "sides that the cells do not divide": (student_with("options", image_size=(30, 32)), "--.*image-size 24 32"),
    # Options
    "a share of 2": (student_with("options", photo_share=2.0), "photo-share needs a number from 0 to 1"),
    "a negative share": (student_with("options", teacher_share=-0.1), "teacher-share needs a number"),
    "hard patches alone": (student_with("options", hard_share=1.0), "hard-share needs a number"),
    "reprojected views alone": (student_with("options", reprojected_share=1.0), "reprojected-share needs a number"),
    "no reprojected view": (
        student_with("options", reprojected_share=0.5, reprojected_views=0), "reprojected-views needs at least 1"
    ),
    "hard and reprojected": (
        student_with("options", reprojected_share=0.5, hard_share=0.5, channels=5), "hard-share cannot be used"
    ),
    "planes in the wrong order": (student_with("options", near_far=(4.0, 2.0)), "near-far needs 0 < near < far"),
    "a cache that is a file": (
        after(lambda p: (p.options.update(cache_dir=p.folder / "f"), (p.folder / "f").write_text("mine"))),
        "cache folder .* cannot be used",
    ),
    "a cache of something else": (
        after(lambda p: (
            p.options.update(cache_dir=p.folder / "c"), (p.folder / "c").mkdir(),
            (p.folder / "c" / "pool.json").write_text("[]"),
        )),
        "cache folder .* cannot be used",
    ),
    "moved points and a surface": (
        student_with("model", surface_octaves=4, jitter_points=True), "--pipeline.model.jitter-points False"
    ),
    # Teachers
    "no such teacher": (student_with("__dict__", teacher=Path("nowhere/config.yml")), "there is no nowhere"),
    "no teacher at all": (student_with("__dict__", teacher=None), "no teacher for .* was found"),
    "a student as teacher": (
        after(lambda p: setattr(p, "teacher", p.student / "config.yml")), "is a student, not a teacher"
    ),
    "a teacher of text": (after(lambda p: p.teacher.write_text(": : [")), "cannot be read as a nerfstudio config"),
    "a teacher of numbers": (after(lambda p: p.teacher.write_text("7")), "is not a nerfstudio config.yml"),
    "a config that runs a command": (after(lambda p: teacher_names(p, "os.system")), "names os.system, which belongs"),
    "a config that calls subprocess": (
        after(lambda p: teacher_names(p, "subprocess.getoutput")), "names subprocess.getoutput"
    ),
    "a config that calls torch": (after(lambda p: teacher_names(p, "torch.load")), "names torch.load"),
    "a teacher without checkpoint": (
        after(lambda p: p.checkpoint(p.teacher.parent).unlink()), "has no checkpoint: train this run first"
    ),
    "a teacher that was cut short": (after(lambda p: cut(p.checkpoint(p.teacher.parent))), "is not a whole nerfstudio"),
    "a teacher that runs a command": (
        after(lambda p: infect(p, p.teacher.parent)), "contains .*system beside its weights"
    ),
    "a teacher's raw pickle": (
        after(lambda p: p.checkpoint(p.teacher.parent).write_bytes(pickle.dumps(Evil()))),
        "not a whole|beside its weights",
    ),
    "a teacher of other weights": (after(other_weights), "was written by another architecture"),
    "a teacher of another world": (
        after(lambda p: (p.teacher.parent / "dataparser_transforms.json").write_text(
            json.dumps({"transform": torch.eye(4)[:3].tolist(), "scale": 2.0})
        )),
        "was trained in another world",
    ),
    "a teacher of a damaged world": (
        after(lambda p: (p.teacher.parent / "dataparser_transforms.json").write_text("{")),
        "dataparser_transforms.json is damaged: copy the run again",
    ),
    # Checkpoints to resume
    "no folder to resume": (student_with("resume", load_dir=Path("nowhere")), "nowhere has no step-"),
    "no step to resume": (student_with("resume", load_dir=Path("nowhere"), load_step=3), "step-000000003.ckpt"),
    "no file to resume": (student_with("resume", load_checkpoint=Path("a.ckpt")), "there is no a.ckpt"),
    "a run that was cut short": (
        after(lambda p: (cut(p.checkpoint(p.student)), p.resume.update(load_dir=p.student / "nerfstudio_models"))),
        "is not a whole nerfstudio checkpoint",
    ),
    "a run that runs a command": (
        after(lambda p: (infect(p, p.student), p.resume.update(load_dir=p.student / "nerfstudio_models"))),
        "contains .*system beside its weights",
    ),
    "a run of another method": (
        after(lambda p: p.resume.update(load_dir=p.teacher.parent / "nerfstudio_models")),
        "cannot be resumed by mobiler2l-small",
    ),
    # Export
    "an export of nothing": (after(lambda p: None, "export", load_config=Path("nowhere")), "there is no"),
    "an export of a teacher": (
        after(lambda p: setattr(p, "student", p.teacher), "export"), "is a .* run, not a student"
    ),
    "an export of NaN": (after(nan_weights, "export"), "has weights that are NaN or infinite"),
    "an export without a camera": (after(without_camera, "export"), "has a student without a camera"),
    "an export of a pickle": (after(lambda p: infect(p, p.student), "export"), "beside its weights"),
    "no targets": (after(lambda p: None, "export", targets=()), "there is nothing to export"),
    "an old opset": (after(lambda p: None, "export", opset=9), "--opset 9 cannot be written"),
    "outputs that the student lacks": (after(lambda p: None, "export", outputs="rgbad"), "pass --outputs rgb"),
    "an output folder that is a file": (
        after(lambda p: (p.folder / "files").write_text("mine"), "export"), "files is a file"
    ),
    "an output folder of something else": (
        after(lambda p: ((p.folder / "files").mkdir(), (p.folder / "files" / "a").write_text("mine")), "export"),
        "is not empty and holds no export",
    ),
    "a damaged record": (
        after(lambda p: (p.student / "distillation.json").write_text("{"), "export"), "distillation.json cannot be read"
    ),
    # Pruning
    "pruning of nothing": (after(lambda p: None, "prune", load_config=Path("nowhere")), "there is no"),
    "pruning of a teacher": (after(lambda p: setattr(p, "student", p.teacher), "prune"), "is a .* run, not a student"),
    "pruning of all": (after(lambda p: None, "prune", fraction=1.0), "--fraction 1.0 cannot be removed"),
    "no rounds": (after(lambda p: None, "prune", rounds=0), "--rounds 0 must be larger than 0"),
    "a name with a path": (after(lambda p: None, "prune", name="a/b"), "--name 'a/b' cannot be a part"),
    "a target that is met": (after(lambda p: None, "prune", target_gmac=100.0), "already: pass a smaller target"),
    "zeros with a target": (
        after(lambda p: None, "prune", unstructured=True, target_mb=1.0), "pass --unstructured False for a target"
    ),
    "a round of something else": (
        after(lambda p: (p.student.with_name("run-pruned-1").mkdir(),
                         (p.student.with_name("run-pruned-1") / "a").write_text("mine")), "prune"),
        "is no round of pruning",
    ),
    "a run that was moved": (
        after(lambda p: (p.student.rename(p.folder / "run"), setattr(p, "student", p.folder / "run")), "prune"),
        "is not in a folder named mobiler2l-small",
    ),
}  # fmt: skip


def snapshot(folder: Path) -> dict:
    """The content of all files below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def documented() -> list:
    """The messages of docs/errors.md as patterns."""
    rows = [line.split(" | ")[0] for line in (ROOT / "docs" / "errors.md").read_text().splitlines() if line[:2] == "| "]
    return [re.compile(".*".join(map(re.escape, row.removeprefix("| ").split("…")))) for row in rows]


@pytest.mark.parametrize(("run", "message"), CASES.values(), ids=CASES)
def test_a_bad_input_is_one_sentence_and_changes_nothing(place, documented, run, message):
    place.before = snapshot(place.folder)
    with pytest.raises(UserError, match=message) as caught:
        run(place)
    sentence = one_sentence(caught).removeprefix("mobiler2l: ")
    assert any(pattern.fullmatch(sentence) for pattern in documented), sentence
    assert not Path("pwned").exists() and not (place.folder / "pwned").exists()
    assert snapshot(place.folder) == place.before


def test_there_are_enough_cases():
    assert len(CASES) >= 40
