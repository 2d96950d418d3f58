"""The benchmarks of the large student: equal seconds beside others, learning rates, and the cost of a step."""

import json
import math
import sys

import pytest
import torch
from bench import cost, equal_time, flagship, rates, training
from builders import one_sentence
from PIL import Image

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.training.finite_steps import Diverged


@pytest.fixture(scope="module")
def teacher(workspace, capture):
    """config.yml of the capture's teacher."""
    (path,) = (workspace / "outputs" / capture.name / "mobiler2l-teacher-small").glob("*/config.yml")
    return path


@pytest.fixture
def run(capture, teacher, tmp_path, monkeypatch):
    """Runs a benchmark on the capture and returns its figures."""

    def start(script, **options) -> dict:
        path = tmp_path / "figures.json"
        words = [word for name, value in options.items() for word in (f"--{name}", *map(str, value))]
        capture_options = ["--data", capture, "--teacher", teacher, "--image-size", "32", "32", "--json", path]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, capture_options), *words])
        script.main()
        return json.loads(path.read_text())

    return start


@pytest.mark.slow
def test_a_student_for_a_second(run, tmp_path):
    options = {"methods": ["mobiler2l-small"], "seconds": [1], "probe-steps": [3], "pixels": [8192]}
    results = run(flagship, **options)
    found = results["students"]["mobiler2l-small"]
    assert found["steps"] == found["curve"][-1]["step"] >= 3 and found["gmac"] > 0 and found["initial_views"] == 40
    assert found["psnr"] == pytest.approx(results["teacher"]["psnr"] - found["gap_to_teacher_db"], abs=2e-3)
    assert found["sharpness"] > 0 and results["columns"] == ["photo", "teacher", "mobiler2l-small"]
    assert (tmp_path / "figures.png").stat().st_size > 2000
    with Image.open(tmp_path / "figures-views.jpg") as views:
        assert views.size == (3 * 32, 2 * 32)  # two held-out photos
    with pytest.raises(UserError, match="has students with other options"):
        run(flagship, **{**options, "seconds": [2]})


def test_students_of_several_commands_share_a_file(capture, teacher, tmp_path, monkeypatch):
    """A second command adds its student to the figures and to the picture."""
    grays = {"mobiler2l": 0.2, "mobiler2l-small": 0.6}
    point = {"step": 1, "seconds": 1.0, "views": 1, "psnr": 20.0}

    def measure(options, method, folder):
        pictures = [torch.full((8, 8, 3), gray) for gray in (0.0, 1.0, grays[method])]
        return {"psnr": 20.0, "curve": [point, point]}, {"psnr": 30.0}, pictures

    monkeypatch.setattr(flagship, "measure_method", measure)
    for method in (*grays, "mobiler2l"):  # the last for the second time
        results = flagship.run_benchmark(flagship.Options(capture, teacher, methods=(method,)), tmp_path / "a.json")
    assert list(results["students"]) == list(grays)
    assert results.items() <= json.loads((tmp_path / "a.json").read_text()).items()
    with Image.open(tmp_path / "a-views.jpg") as views:
        found = [views.getpixel((3 + 8 * column, 3))[0] for column in range(4)]
    assert found == pytest.approx([0, 255, 51, 153], abs=2)


def test_steps_and_views_for_a_given_time_by_hand(capture, tmp_path, monkeypatch):
    """A view takes 2 s, a step 1 s, everything before the first point of the probe's curve 20 s."""

    def train(config, *args, **kwargs):
        data = config.pipeline.datamanager
        assert data.initial_views == training.PROBE_VIEWS and data.filling_share == data.teacher_share == 0
        curve = [training.Score(10, 20.0, 4, 0.0), training.Score(30, 40.0, 4, 0.0)]
        return training.Run("a", 0, 30, teacher_seconds=2.0 * data.initial_views, curve=curve), None

    monkeypatch.setattr(training, "train", train)
    options = flagship.Options(capture, tmp_path, (32, 32))
    ours = flagship.config_of(options, "mobiler2l", tmp_path)
    assert ours.pipeline.datamanager.initial_views == 100 and ours.pipeline.datamanager.filling_share == 0.25
    # Three quarters of the 980 s; in the short run 96 more views take 192 of the 280 s.
    assert training.steps_within(ours, 1000.0, 30) == 735 and training.steps_within(ours, 300.0, 30) == 88
    assert training.steps_within(ours, 25.0, 30) == 30
    paper = flagship.config_of(options, "mobiler2l-paper", tmp_path)
    equal_time.limit_views(paper, 200.0)
    assert paper.pipeline.datamanager.pool_views == paper.pipeline.datamanager.initial_views == 100
    assert training.steps_within(paper, 1000.0, 30) == 980 - 192


def test_sharpness_by_hand():
    """A quarter of the contrast has a quarter of the differences of neighbours."""
    ramp = torch.linspace(0, 1, 16).expand(16, 16)[..., None].expand(16, 16, 3)
    assert flagship.sharpness(ramp, ramp) == pytest.approx(1)
    assert flagship.sharpness(0.25 * ramp, ramp) == pytest.approx(0.25)


def test_psnr_at_the_border_by_hand():
    """An error of 0.1 is 20 dB, and the border of 20x40 pixels is two pixels wide."""
    photo = torch.rand(20, 40, 3)
    image = photo + 0.1
    image[2:-2, 2:-2] = 5
    assert flagship.border_psnr(image, photo) == pytest.approx(20, abs=1e-3)


def test_pixels_of_a_batch(capture, tmp_path):
    options = flagship.Options(capture, tmp_path, (32, 32), pixels=20480)
    patches = {
        method: flagship.config_of(options, method, tmp_path).pipeline.datamanager.patches_per_batch
        for method in ("mobiler2l", "mobiler2l-paper", "mobiler2l-small")
    }
    assert patches == {"mobiler2l": 3, "mobiler2l-paper": 20, "mobiler2l-small": 5}  # of 80x80, 32x32, 64x64 pixels


def test_fewer_views_before_the_first_step(capture, tmp_path):
    """For mobiler2l alone: the small student's views are tiles, and the published recipe needs all of its own."""
    options = flagship.Options(capture, tmp_path, (32, 32), initial_views=7)
    views = {
        method: flagship.config_of(options, method, tmp_path).pipeline.datamanager.initial_views
        for method in ("mobiler2l", "mobiler2l-paper", "mobiler2l-small")
    }
    assert views == {"mobiler2l": 7, "mobiler2l-paper": 10000, "mobiler2l-small": 40}


@pytest.mark.slow
def test_rates_by_width_and_length(run):
    options = {"depth": [6], "widths": [8, 16], "lengths": [2], "rates": [0.01, 0.02], "pixels": [6400], "views": [2]}
    run(rates, **{**options, "widths": [8], "rates": [0.01]})
    results = run(rates, **options)  # joins what the file has
    assert [(found["width"], found["rate"], found["steps"]) for found in results["runs"]] == [
        (8, 0.01, 2), (8, 0.02, 2), (16, 0.01, 2), (16, 0.02, 2)
    ]  # fmt: skip
    assert len({found["psnr"] for found in results["runs"]}) == 4  # the rates had an effect
    assert [(best["pixels"], best["width"]) for best in results["best"]] == [(6400, 8), (6400, 16)]
    with pytest.raises(UserError, match="runs with another capture, depth, seed or number of views"):
        run(rates, **{**options, "depth": [8]})


def test_the_best_rate_by_hand():
    """PSNR of 25 - log(rate / 0.02)^2 has its top at 0.02, which no run used."""
    runs = [{"rate": rate, "psnr": 25 - math.log(rate / 0.02) ** 2} for rate in (0.005, 0.014, 0.05)]
    assert rates.best_rate(runs)["rate"] == pytest.approx(0.02, rel=1e-3)
    assert rates.best_rate(runs[:2])["rate"] == 0.014  # an end of the rates
    diverged = {"rate": 0.05, "psnr": None}
    assert rates.best_rate([*runs[:2], diverged])["rate"] == 0.014
    assert rates.best_rate([diverged])["rate"] is None


@pytest.mark.slow
def test_a_rate_that_diverges_is_told(run, monkeypatch, capsys):
    def diverge(*arguments):
        raise Diverged("too large")

    monkeypatch.setattr(rates, "train", diverge)
    results = run(rates, widths=[8], lengths=[2], rates=[9.0], pixels=[6400])
    assert results["runs"][0]["psnr"] is None and results["best"][0]["rate"] is None
    assert "9: diverged" in capsys.readouterr().out


@pytest.mark.slow
def test_the_cost_of_tiny_steps(run, monkeypatch):
    tiny = [cost.Shape("mobiler2l", patches, 6, width) for patches, width in ((1, 8), (2, 16), (4, 8), (3, 16))]
    monkeypatch.setattr(cost, "FITTED", tuple(tiny[:3]))
    monkeypatch.setattr(cost, "CHECKED", tuple(tiny[3:]))
    monkeypatch.setattr(cost, "RUNS", tuple(tiny[3:]))
    monkeypatch.setattr(cost, "apart", lambda function, *arguments: function(*arguments))
    results = run(cost, steps=[4], rounds=[2], **{"run-steps": [3]})
    found = results["shapes"]["mobiler2l D6 W16, 3 patches"]
    assert results["checked"] == ["mobiler2l D6 W16, 3 patches"] and results["teacher"]["rays_per_second"] > 0
    assert found["layers"] == 6 and found["milliseconds"] > 0
    smaller = results["shapes"]["mobiler2l D6 W16, 2 patches"]
    for name in ("gmac", "kept_gb"):  # in proportion to the patches
        assert found[name] == pytest.approx(1.5 * smaller[name], rel=0.1), name
    assert found["optimizer_gmac"] == smaller["optimizer_gmac"] > 0
    (whole,) = results["runs"].values()
    assert (whole["first_rays"], whole["share"]) == (100 * 32 * 32, 0.25) and whole["photo_rays"] % (32 * 32) == 0
    assert whole["seconds"] > 0 and whole["photo_rays"] > 0 and whole["views"] >= 100
    assert whole["gmac"] == pytest.approx(found["gmac"])


def test_the_model_of_a_run_by_hand():
    """2 s for the teacher, 1 s for the photos; 10 steps of 0.3 s beside 4 s or 0.5 s of first views."""
    teacher = {"ready_seconds": 2.0, "rays_per_second": 1000}
    run = {**dict.fromkeys(cost.TERMS, 0.0), "step": 1.0, "gmac": 10.0, "steps": 10, "photo_rays": 1000}
    run.update(share=0.25, first_rays=4000)
    per = {**dict.fromkeys(cost.TERMS, 0.0), "step": 100.0, "gmac": 20.0}
    assert cost.predict_run(per, teacher, run) == pytest.approx(2 + 1 + 4 + 3)
    assert cost.predict_run(per, teacher, {**run, "first_rays": 500}) == pytest.approx(2 + 1 + 3 / 0.75)


def test_the_model_of_a_step_by_hand():
    """Steps that follow the model exactly give it back."""
    per = dict(zip(cost.TERMS, (20.0, 2.0, 10.0, 5.0, 300.0)))
    work = ((6, 1, 2, 0.1), (6, 10, 2, 0.5), (60, 5, 15, 0.2), (60, 20, 15, 0.1), (24, 3, 1, 0.9), (24, 8, 1, 0.1))
    shapes = [dict(zip(cost.TERMS, (1.0, *terms))) for terms in work]
    measured = [{**shape, "milliseconds": cost.predict(per, shape)} for shape in shapes]
    assert cost.fit(measured) == pytest.approx(per, rel=1e-6)


def test_the_work_of_muon_by_hand():
    """A matrix of 4x6: five times two products of 4x4x6, and one of 4x4x4."""
    assert cost.newton_schulz_macs(torch.nn.Parameter(torch.zeros(6, 4, 1, 1))) == 5 * (2 * 96 + 64)


@pytest.mark.parametrize("script", [flagship, rates, cost], ids=["flagship", "rates", "cost"])
def test_a_missing_capture_ends_in_a_sentence(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--data", "nowhere", "--teacher", "config.yml"])
    with pytest.raises(UserError) as caught:
        script.main()
    assert "no folder nowhere" in one_sentence(caught)
