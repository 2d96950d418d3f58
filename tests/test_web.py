"""The web page: its files, and what it shows in a real browser on WebGPU and on WASM, against torch."""

import contextlib
import copy
import functools
import http.server
import json
import math
import shutil
import subprocess
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Dict, Iterator, List, Optional

import numpy as np
import onnxruntime
import pytest
import torch
from browser import PageLog, drag, roll_wheel, screenshot
from builders import FEW_LAYERS, STUDENT_CAMERA, UNBOUNDED, make_student
from missing_packages import cure, missing
from PIL import Image
from playwright.sync_api import Page
from system_packages import needs

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export import web_files
from mobiler2l_ns.geometry import look_at
from mobiler2l_ns.student.viewing_range import viewing_range

SCENE = "A <b>small</b> & wild scene"
SIZE = (48, 72)

# SwiftShader as the GPU, and as the compositor's too: else the canvas stays empty.
WEBGPU = (
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-features=Vulkan", "--use-vulkan=swiftshader", "--ignore-gpu-blocklist",
)  # fmt: skip


def in_browser(test):
    """Marks a test that needs Chromium."""
    return pytest.mark.browser(needs("chromium")(test))


@pytest.fixture(scope="module")
def student():
    """A student of random weights, so that its picture depends on every number of the pose, and a part of an orbit."""
    azimuth, height = torch.linspace(-1, 1, 32), torch.linspace(0.4, 2.4, 32)
    spread = 2.6 + 0.4 * torch.sin(5 * azimuth)
    positions = torch.stack([spread * torch.cos(azimuth), spread * torch.sin(azimuth), height], dim=-1)
    viewpoints = look_at(positions, torch.zeros(32, 3), torch.tensor([0.0, 0, 1]))
    return make_student({**STUDENT_CAMERA, "viewpoints": viewpoints}, **FEW_LAYERS)


@pytest.fixture(scope="session")
def ort_dist(request) -> Path:
    """The dist folder of the pinned onnxruntime-web, fetched once and kept in pytest's cache."""
    folder = request.config.cache.mkdir(f"onnxruntime-web-{web_files.ORT_VERSION}")
    dist = folder / "package" / "dist"
    if not dist.is_dir():
        if missing(["npm"]):
            pytest.skip(f"npm not installed: run {cure(['npm'])}")
        package = f"onnxruntime-web@{web_files.ORT_VERSION}"
        done = subprocess.run(["npm", "pack", package], cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"NO RUNTIME: npm pack {package} failed: {done.stderr[-300:]}")
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as files:
            files.extractall(folder, [m for m in files if Path(m.name).name in web_files.ORT_FILES.values()])
        archive.unlink()
    return dist


@pytest.fixture(scope="module")
def site(student, ort_dist, tmp_path_factory) -> Path:
    """The page with its runtime."""
    folder = tmp_path_factory.mktemp("site")
    web_files.write_web_files(student, folder, SCENE, ort_dist=ort_dist)
    return folder


# -- the files --------------------------------------------------------------------------------------------------------


def test_files_and_facts(student, tmp_path):
    web_files.write_web_files(student, tmp_path, SCENE)
    names = {"index.html", "viewer.js", "scene.js", "model.onnx", "scene.json", "reference.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    scene = json.loads((tmp_path / "scene.json").read_text())
    assert (scene["name"], scene["height"], scene["width"]) == (SCENE, *SIZE)
    assert scene["model"] == {
        "file": "model.onnx", "precision": "fp32", "bytes": (tmp_path / "model.onnx").stat().st_size,
    }  # fmt: skip
    assert scene["range"] == json.loads(json.dumps(viewing_range(student).to_dict()))
    assert scene["range"]["radius"][0] < scene["range"]["radius"][1] and scene["range"]["azimuth"] is not None
    assert scene["runtime"]["base"] == f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web_files.ORT_VERSION}/dist/"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_model_renders_the_reference(student, tmp_path, precision):
    web_files.write_web_files(student, tmp_path, SCENE, precision)
    c2w = np.float32(json.loads((tmp_path / "scene.json").read_text())["reference"]["c2w"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("c2w", [1, 3, 4])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("rgb", [1, 3, *SIZE])]
    (rgb,) = session.run(None, {"c2w": c2w[None]})
    reference = np.asarray(Image.open(tmp_path / "reference.png"))
    assert psnr(rgb[0].transpose(1, 2, 0) * 255, reference) > 45


def test_int8_is_refused(student, tmp_path):
    with pytest.raises(UserError, match="fp32 or fp16"):
        web_files.write_web_files(student, tmp_path, SCENE, "int8")
    assert not list(tmp_path.iterdir())


def test_incomplete_runtime_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"has no ort\.webgpu\.min\.mjs: run `npm pack onnxruntime-web@{version()}`"):
        web_files.check_ort_dist(tmp_path)
    for name in web_files.ORT_FILES.values():
        (tmp_path / name).write_text("another version")
    with pytest.raises(UserError, match=rf"is not that of onnxruntime-web {version()}"):
        web_files.check_ort_dist(tmp_path)


def test_hashes_are_those_of_the_package(ort_dist):
    web_files.check_ort_dist(ort_dist)
    for role, name in web_files.ORT_FILES.items():
        assert (ort_dist / name).stat().st_size == web_files.ORT_BYTES[role]


def test_page_names_no_address():
    """But that of the CDN, from which its policy lets it load."""
    policy = f"connect-src 'self' blob: data: https://{web_files.ORT_CDN.split('/')[2]};"
    for name in web_files.PAGE:
        text = (web_files.ASSETS / name).read_text()
        assert "//cdn" not in text.replace(policy, "") and "http:" not in text
    assert policy in (web_files.ASSETS / "index.html").read_text()


# -- the browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["webgpu", "wasm"])
def shared(request, site, new_page):
    """The page's log, address and backend; the page shows its first picture."""
    with serve(site) as address, new_page(WEBGPU) as page:
        log = open_viewer(page, f"{address}?backend={request.param}")
        yield SimpleNamespace(page=page, log=log, address=address, backend=request.param)


@pytest.fixture
def page(shared) -> Page:
    """The page that several tests share."""
    return shared.page


@in_browser
def test_first_picture_is_torchs(page, shared, student):
    assert page.evaluate("viewer.backend") == shared.backend
    assert page.evaluate("viewer.psnr") >= web_files.LOWEST_PSNR
    assert notice(page) == ""
    assert page.evaluate("document.title") == page.evaluate("document.querySelector('h1').textContent") == SCENE
    c2w = web_files.start_pose(student)
    assert np.abs(np.array(page.evaluate("viewer.pose")).reshape(3, 4) - c2w.numpy()).max() < 1e-5
    assert psnr(canvas_on_screen(page), torch_picture(student, c2w)) >= 35


@in_browser
def test_dragging_goes_around(page, student):
    reset(page)
    before = frame(page)
    drag(page, (600, 400), (500, 330))
    after = frame(page)
    assert psnr(before, after) < 30
    assert psnr(after, torch_picture(student, page.evaluate("viewer.pose"))) >= 35
    assert psnr(canvas_on_screen(page), after) >= 45


@in_browser
def test_keys(page, student):
    reset(page)
    page.evaluate("document.querySelector('canvas').focus()")
    start = page.evaluate(ANGLES)
    for key in ("ArrowLeft", "ArrowDown", "+"):
        page.keyboard.press(key)
    moved = page.evaluate(ANGLES)
    assert moved[0] > start[0] and moved[1] > start[1] and moved[2] == pytest.approx(start[2] / 1.08)
    assert psnr(frame(page), torch_picture(student, page.evaluate("viewer.pose"))) >= 35
    for key in ("ArrowRight", "ArrowUp", "-"):
        page.keyboard.press(key)
    assert page.evaluate(ANGLES) == pytest.approx(start)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    assert page.evaluate(ANGLES) == pytest.approx(start)


@in_browser
@pytest.mark.parametrize("side", [0, 1])
def test_poses_stay_where_the_student_was_trained(page, student, side):
    far = [-99, 99][side]
    page.evaluate(f"viewer.look({{azimuth: {far}, elevation: {far}, radius: {far}}})")
    views = viewing_range(student)
    corner = views.pose(views.azimuth[side], views.elevation[side], views.radius[side])
    pose = np.array(page.evaluate("viewer.pose")).reshape(3, 4)
    assert np.abs(pose - corner.numpy()).max() < 1e-5
    turns = [-1, 1][side]
    drag(page, (600, 400), (600 - 300 * turns, 400 + 300 * turns))
    roll_wheel(page, 500 * turns)
    assert page.evaluate("viewer.pose") == pytest.approx(pose.ravel().tolist())
    assert psnr(frame(page), torch_picture(student, pose)) >= 35


@in_browser
def test_wheel_and_pinch_zoom(page):
    reset(page)
    radius = page.evaluate("viewer.orbit.radius")
    roll_wheel(page, -50)
    assert page.evaluate("viewer.orbit.radius") == pytest.approx(radius * math.exp(-0.05))
    reset(page)
    devtools = page.context.new_cdp_session(page)  # Playwright has no gestures of two fingers
    devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    for kind, apart in (("touchStart", 200), ("touchMove", 205), ("touchMove", 210)):
        points = [{"x": 600 - apart / 2, "y": 400, "id": 0}, {"x": 600 + apart / 2, "y": 400, "id": 1}]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    devtools.detach()
    assert page.evaluate("viewer.orbit.radius") == pytest.approx(radius * 200 / 210, rel=1e-3)


@in_browser
def test_only_the_newest_pose_is_rendered_and_nothing_at_rest(page, student):
    frame(page)
    page.evaluate(
        "viewer.count = 0; const render = viewer.renderer.render; "
        "viewer.renderer.render = function (pose) { viewer.count++; return render.call(this, pose); }; null"
    )
    page.evaluate("for (let i = 0; i < 50; i++) viewer.look({azimuth: i / 1000})")
    assert psnr(frame(page), torch_picture(student, page.evaluate("viewer.pose"))) >= 35
    assert page.evaluate("viewer.orbit.azimuth") == pytest.approx(0.049)
    assert page.evaluate("viewer.count") <= 2
    page.evaluate("viewer.count = 0")
    page.wait_for_timeout(500)
    assert page.evaluate("viewer.count") == 0


@in_browser
def test_nothing_left_the_machine_and_nobody_complained(shared):
    """After all the above."""
    assert shared.log.complaints == []
    own = (shared.address, f"blob:{shared.address}", "data:")
    assert shared.log.requests and [url for url in shared.log.requests if not url.startswith(own)] == []


@in_browser
def test_backend_can_be_switched(page, shared, student):
    """Comes last of those that share a page."""
    other = {"webgpu": "wasm", "wasm": "webgpu"}[shared.backend]
    page.evaluate(
        f"const select = document.querySelector('select'); select.value = '{other}'; "
        "select.dispatchEvent(new Event('change'))"
    )
    wait(page, "!document.querySelector('select').disabled")
    assert page.evaluate("viewer.backend") == other
    assert page.evaluate("location.search") == f"?backend={other}"
    assert psnr(frame(page), torch_picture(student, page.evaluate("viewer.pose"))) >= 35
    assert shared.log.complaints == []


@in_browser
def test_lost_gpu_is_survived(new_page, site, student):
    with serve(site) as address, new_page(WEBGPU) as page:
        open_viewer(page, f"{address}?backend=webgpu")
        page.evaluate("viewer.look({azimuth: 0.2}), viewer.renderer.device.destroy()")
        wait(page, "viewer.backend === 'wasm' && !document.querySelector('select').disabled")
        assert "The GPU was lost" in notice(page)
        assert psnr(frame(page), torch_picture(student, page.evaluate("viewer.pose"))) >= 35


@in_browser
def test_runtime_of_the_cdn(new_page, site, tmp_path):
    """Other origin, hashes checked; the files are those of WebGPU, too. The page is isolated, so WASM has threads."""
    isolation = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    sharing = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}

    def answer(route):
        route.fulfill(path=site / "ort" / route.request.url.removeprefix(web_files.ORT_CDN), headers=sharing)

    folder = site_with_runtime_at(web_files.ORT_CDN, site, tmp_path)
    with serve(folder, isolation) as address, new_page(WEBGPU) as page:
        page.route(f"{web_files.ORT_CDN}*", answer)
        log = open_viewer(page, f"{address}?backend=wasm")
        assert page.evaluate("crossOriginIsolated")
        assert (page.evaluate("viewer.backend"), notice(page)) == ("wasm", "")
        assert log.complaints == []


@in_browser
def test_no_other_server_is_asked(new_page, site, tmp_path):
    """Also if scene.json was changed to name one, or a script asks. No code runs but the page's and the runtime's."""
    sharing = {"Access-Control-Allow-Origin": "*"}
    with serve(site / "ort", sharing) as other:
        with serve(site_with_runtime_at(other, site, tmp_path)) as address, new_page(WEBGPU) as page:
            log = open_viewer(page, address)
            assert notice(page) == "scene.json is damaged (runtime.base): export the scene again."
            assert log.requests and not any(url.startswith(other) for url in log.requests)
            name = web_files.ORT_FILES["script"]
            assert page.evaluate(f"fetch('{other}{name}').then(() => 'loaded', () => 'refused')") == "refused"
            assert any("Content Security Policy" in complaint for complaint in log.complaints)
            page.evaluate(
                "const script = document.createElement('script'); script.textContent = 'window.intruder = true'; "
                "document.head.append(script)"
            )
            assert page.evaluate("window.intruder === undefined")


def site_with_runtime_at(base: str, site: Path, tmp_path: Path) -> Path:
    """The page with its runtime on another server."""
    folder = tmp_path / "site"
    shutil.copytree(site, folder, ignore=shutil.ignore_patterns("ort"))
    scene = json.loads((folder / "scene.json").read_text())
    scene["runtime"]["base"] = base
    (folder / "scene.json").write_text(json.dumps(scene))
    return folder


@in_browser
@pytest.mark.parametrize("backend", ["webgpu", "wasm"])
def test_surface_code(new_page, student, ort_dist, tmp_path, backend):
    """Softmax, fixed convolutions and fast sines give torch's picture on both backends."""
    camera = {**STUDENT_CAMERA, "viewpoints": student.coverage.viewpoints}
    model = make_student(camera, surface_octaves=8, refinements=1, **FEW_LAYERS)
    web_files.write_web_files(model, tmp_path, SCENE, ort_dist=ort_dist)
    with serve(tmp_path) as address, new_page(WEBGPU) as page:
        log = open_viewer(page, f"{address}?backend={backend}")
        assert (page.evaluate("viewer.backend"), notice(page)) == (backend, "")
        assert psnr(frame(page), torch_picture(model, page.evaluate("viewer.pose"))) >= 35
        assert log.complaints == []


@in_browser
def test_wrong_picture_is_announced(new_page, site, tmp_path):
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    Image.fromarray(255 - np.asarray(Image.open(folder / "reference.png"))).save(folder / "reference.png")
    with serve(folder) as address, new_page(WEBGPU) as page:
        open_viewer(page, f"{address}?backend=webgpu")
        assert page.evaluate("viewer.backend") == "wasm"
        assert "WebGPU's first image differs from reference.png" in notice(page)
        assert "WASM's first image differs from reference.png" in notice(page)


@in_browser
def test_no_webgpu_falls_back_to_wasm(new_page, site):
    with serve(site) as address, new_page(("--disable-features=WebGPU", "--disable-gpu")) as page:
        open_viewer(page, address)
        assert page.evaluate("viewer.backend") == "wasm"
        assert "WebGPU" in notice(page) and "The CPU renders instead" in notice(page)


@in_browser
def test_fp16_without_a_gpu_for_it(new_page, student, ort_dist, tmp_path):
    """SwiftShader has no 16-bit arithmetic."""
    web_files.write_web_files(student, tmp_path, SCENE, "fp16", ort_dist)
    with serve(tmp_path) as address, new_page(WEBGPU) as page:
        open_viewer(page, f"{address}?backend=webgpu")
        assert page.evaluate("viewer.backend") == "wasm"
        assert notice(page) == (
            "This GPU has no 16-bit arithmetic for the model. The CPU renders instead, which is slower."
        )
        assert page.evaluate("viewer.psnr") >= 45


@in_browser
def test_imitated_gpu_is_taken_only_when_asked_for(new_page, site):
    with serve(site) as address, new_page(WEBGPU) as page:
        open_viewer(page, address)
        assert page.evaluate("viewer.backend") == "wasm"
        assert "emulated in software" in notice(page)


@in_browser
@pytest.mark.parametrize("name", ["scene.json", "model.onnx", "reference.png", "ort/ort.webgpu.min.mjs"])
def test_missing_file_is_named(new_page, site, tmp_path, name):
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (folder / name).unlink()
    with serve(folder) as address, new_page(WEBGPU) as page:
        open_viewer(page, address)
        assert notice(page).startswith(f"{name} could not be loaded")


@in_browser
def test_damaged_runtime_is_not_run(new_page, site, tmp_path):
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    script = folder / "ort" / web_files.ORT_FILES["script"]
    script.write_text(script.read_text() + "\nwindow.intruder = true;")
    with serve(folder) as address, new_page(WEBGPU) as page:
        open_viewer(page, address)
        assert "is another file than expected" in notice(page)
        assert page.evaluate("window.intruder === undefined")


# -- scene.json -------------------------------------------------------------------------------------------------------

MISSING = object()

# An entry of scene.json, and something that it cannot be.
DAMAGES = [
    ("name", 3), ("height", "48"), ("height", 0), ("width", 72.5), ("width", 16385), ("model.file", MISSING),
    ("model.file", "../model.onnx"), ("model.file", "https://example.org/model.onnx"), ("model.file", ".."),
    ("model.bytes", -1), ("model.bytes", 1e12), ("model.precision", "int8"), ("range.centre", [0, 0]),
    ("range.up", [0, 0, 2]), ("range.east", [1, 0, None]), ("range.radius", [3, 2]), ("range.radius", [-1, 2]),
    ("range.elevation", [-2, 2]), ("range.azimuth", MISSING), ("range.azimuth", [0, 99]), ("range.start.radius", "2"),
    ("reference.file", "/reference.png"), ("reference.file", ""), ("reference.lowest_psnr", -5),
    ("runtime.base", "//example.org/"), ("runtime.base", "../"),
    ("runtime.base", web_files.ORT_CDN.replace("onnxruntime-web", "another")),
    ("runtime.base", web_files.ORT_CDN.replace("jsdelivr.net", "example.org")),
    ("runtime.files", {}), ("runtime.files.more", {"file": "//example.org/x.mjs"}),
    ("runtime.files.script.file", "../x.mjs"), ("runtime.files.wasm.bytes", None),
    ("runtime.files.factory.integrity", ""), ("runtime.files.factory.integrity", "md5-x"),
]  # fmt: skip


@pytest.fixture
def scenes(student) -> List[Dict]:
    """scene.json of several students, each with both ways of the runtime."""
    others = [make_student(), make_student(STUDENT_CAMERA, surface_octaves=8), make_student(UNBOUNDED)]
    return [
        json.loads(json.dumps(web_files.scene_dict(model, SCENE, web_files.start_pose(model), 1000, precision, base)))
        for model in (student, *others)
        for precision, base in (("fp32", web_files.ORT_CDN), ("fp16", "ort/"))
    ]


def changed(scene: Dict, path: str, value) -> str:
    """The text of scene.json with another entry."""
    scene = copy.deepcopy(scene)
    *parents, last = path.split(".")
    folder = functools.reduce(dict.__getitem__, parents, scene)
    folder.pop(last, None)
    if value is not MISSING:
        folder[last] = value
    return json.dumps(scene)


@in_browser
def test_a_damaged_scene_is_named(new_page, scenes, tmp_path):
    """In one browser: the check alone, with all damages and all kinds of students; then what the page shows."""
    for name in web_files.PAGE:
        shutil.copyfile(web_files.ASSETS / name, tmp_path / name)
    scene, answer = scenes[0], {"text": ""}
    read = """text => import("/scene.js").then(({ readScene }) => {
        try { return readScene(new TextEncoder().encode(text)); } catch (error) { return error.message; }
    })"""
    with serve(tmp_path) as address, new_page() as page:
        page.route("**/scene.json", lambda route: route.fulfill(body=answer["text"]))
        open_viewer(page, address)
        for found in scenes:
            assert page.evaluate(read, json.dumps(found)) == found
        for entry, value in DAMAGES:
            named = "runtime.files" if entry == "runtime.files.more" else entry
            message = f"scene.json is damaged ({named}): export the scene again."
            assert page.evaluate(read, changed(scene, entry, value)) == message, value
        infinite = json.dumps(scene).replace('"lowest_psnr": 35.0', '"lowest_psnr": 1e999')
        for text, words in [
            ("", ""), ('{"name": NaN}', ""), ("[]", " (name)"), ("null", " (name)"),
            (infinite, " (reference.lowest_psnr)"), (changed(scene, "model.file", "//example.org/x"), " (model.file)"),
        ]:  # fmt: skip
            answer["text"] = text
            log = open_viewer(page, address)
            assert notice(page) == f"scene.json is damaged{words}: export the scene again."
            assert {url.removeprefix(address) for url in log.requests} <= {"", *web_files.PAGE, "scene.json", "data:,"}


# -- helpers ----------------------------------------------------------------------------------------------------------


ANGLES = "[viewer.orbit.azimuth, viewer.orbit.elevation, viewer.orbit.radius]"


def version() -> str:
    """The pinned version, for a regular expression."""
    return web_files.ORT_VERSION.replace(".", r"\.")


@contextlib.contextmanager
def serve(folder: Path, headers: Optional[Dict[str, str]] = None) -> Iterator[str]:
    """A web server for a folder, and its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def open_viewer(page: Page, address: str) -> PageLog:
    """Opens the page and waits until it shows a picture or says why not; what it does from now on is logged."""
    log = PageLog(page)
    page.goto(address)
    wait(page, "window.viewer !== undefined")
    page.evaluate("viewer.ready.then(() => {})")
    return log


def wait(page: Page, condition: str) -> None:
    """Returns when a JavaScript expression is true; fails after two minutes.

    Playwright's wait_for_function calls eval in the page, which its policy forbids.
    """
    deadline = time.monotonic() + 120
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def notice(page: Page) -> str:
    """What the page warns of, or nothing."""
    return page.evaluate("(n => n.checkVisibility() ? n.textContent : '')(document.getElementById('notice'))")


def reset(page: Page) -> None:
    """Back to the start view."""
    page.evaluate("viewer.look(viewer.scene.range.start)")


def frame(page: Page) -> np.ndarray:
    """(H, W, 3) bytes that the page shows, by its own account."""
    flat = page.evaluate("viewer.pixels().then((pixels) => Array.from(pixels))")
    return np.uint8(flat).reshape(*SIZE, 4)[..., :3]


def canvas_on_screen(page: Page) -> np.ndarray:
    """(H, W, 3) pixels of the canvas in a screenshot, where it is shown unscaled for a moment."""
    frame(page)
    height, width = SIZE
    plain = f"position: fixed; z-index: 1; width: {width}px; height: {height}px; border-radius: 0"
    page.evaluate(f"document.querySelector('canvas').style.cssText = '{plain}'")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    left, top = page.evaluate("(box => [box.x, box.y])(document.querySelector('canvas').getBoundingClientRect())")
    picture = screenshot(page)
    page.evaluate("document.querySelector('canvas').style.cssText = ''")
    return picture[round(top) : round(top) + height, round(left) : round(left) + width]


def torch_picture(model, c2w) -> np.ndarray:
    """(H, W, 3) in 0..255, by torch through nerfstudio's camera, at a pose of any form."""
    from mobiler2l_ns.cameras import pinhole_cameras

    c2w = torch.as_tensor(c2w, dtype=torch.float32).reshape(1, 3, 4)
    camera = pinhole_cameras(c2w, model.focal, *model.size)
    return model.get_outputs_for_camera(camera)["rgb"].numpy() * 255


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels between two pictures in 0..255."""
    return -10 * math.log10(max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9) / 255**2)
