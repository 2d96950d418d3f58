// Renders a neural light field in the browser: a network computes an image from a camera pose.
//
// There is no slider for the resolution. The network's super-resolution learned one angular size of a ray-grid cell, so
// its field of view has a fixed number of pixels. The page scales the image to the window instead.

import { readScene } from "./scene.js";

const element = (id) => document.getElementById(id);
const NAMES = { webgpu: "WebGPU", wasm: "WASM" };
const KEY_STEP = 1 / 32; // of a drag across the whole image
const ZOOM_STEP = 1.08;

// -- the camera -------------------------------------------------------------------------------------------------------

const add = (a, b, scale = 1) => a.map((x, i) => x + scale * b[i]);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => add([0, 0, 0], a, 1 / Math.hypot(...a));
const clamp = (x, [low, high]) => Math.min(Math.max(x, low), high);

/** An orbit around the scene within the range of the training cameras. Angles in radians, lengths in world units. */
class Orbit {
  constructor(range) {
    this.range = range;
    this.north = cross(range.up, range.east);
    // A drag across the image turns the camera by half a circle, or by the whole range if that is smaller.
    this.turn = Math.min(Math.PI, range.azimuth ? range.azimuth[1] - range.azimuth[0] : Math.PI);
    this.tilt = Math.min(Math.PI, range.elevation[1] - range.elevation[0]);
    this.reset();
  }

  reset() {
    this.set(this.range.start);
  }

  set({ azimuth = this.azimuth, elevation = this.elevation, radius = this.radius }) {
    const range = this.range;
    this.azimuth = range.azimuth ? clamp(azimuth, range.azimuth) : azimuth;
    this.elevation = clamp(elevation, range.elevation);
    this.radius = clamp(radius, range.radius);
  }

  /** Moves the scene by fractions of the image: a drag to the right turns the camera to the left. */
  drag(right, down) {
    this.set({ azimuth: this.azimuth - this.turn * right, elevation: this.elevation + this.tilt * down });
  }

  zoom(factor) {
    this.set({ radius: this.radius * factor });
  }

  /** The camera-to-world pose: 12 numbers, rows of a (3, 4) matrix, OpenGL axes. The same as ViewingRange.pose. */
  pose() {
    const { centre, up, east } = this.range;
    const flat = add(add([0, 0, 0], east, Math.cos(this.azimuth)), this.north, Math.sin(this.azimuth));
    const direction = add(add([0, 0, 0], flat, Math.cos(this.elevation)), up, Math.sin(this.elevation));
    const position = add(centre, direction, this.radius);
    const back = unit(add(position, centre, -1));
    const right = unit(cross(up, back));
    const above = cross(back, right);
    return [0, 1, 2].flatMap((i) => [right[i], above[i], back[i], position[i]]);
  }
}

// -- files ------------------------------------------------------------------------------------------------------------

/** The bytes of a file; onBytes is called with the number of bytes loaded so far. */
async function load(url, cure, { onBytes = () => {}, ...options } = {}) {
  const doubt = options.integrity ? " or is another file than expected" : "";
  const response = await fetch(url, options).catch(() => {
    throw new Error(`${url} could not be loaded${doubt}: ${cure}`);
  });
  if (!response.ok) throw new Error(`${url} could not be loaded (${response.status}): ${cure}`);
  const parts = [];
  let count = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    onBytes((count += value.length));
  }
}

/** A file of the exported folder. The browser checks with the server whether its cached file is current. */
function loadOurs(url, onBytes) {
  return load(url, "copy the whole exported folder to the server.", { onBytes, cache: "no-cache" });
}

/** The files of onnxruntime-web after a check of their hashes. They run from blobs, so no other file can run. */
async function loadRuntime({ base, files }) {
  const cure = base.includes("//") ? "connect to the internet, or export with --ort-dist." : "export again.";
  const roles = Object.entries(files);
  const loaded = roles.map(([, { file, integrity }]) => load(base + file, cure, { integrity }));
  return Object.fromEntries((await Promise.all(loaded)).map((bytes, i) => [roles[i][0], bytes]));
}

/** (H, W, 4) bytes of the image that torch rendered at the start pose. */
async function loadReference({ file }, width, height) {
  const bitmap = await createImageBitmap(new Blob([await loadOurs(file)]), { colorSpaceConversion: "none" });
  const fits = bitmap.width === width && bitmap.height === height;
  if (!fits) throw new Error(`${file} has another size than in scene.json: export the scene again.`);
  return pixelsOf(bitmap, width, height);
}

function pixelsOf(image, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

/** PSNR in dB between the colours of two (H, W, 4) images. */
function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) if (i % 4 < 3) sum += (a[i] - b[i]) ** 2;
  return -10 * Math.log10(Math.max(sum, 1e-9) / (0.75 * a.length) / 255 ** 2);
}

// -- rendering --------------------------------------------------------------------------------------------------------

/** Loads a separate copy of onnxruntime for each backend, because a copy cannot change its settings. */
async function startRuntime(runtime, backend) {
  const script = new Blob([runtime.script], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = runtime.wasm.buffer;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([runtime.factory], { type: "text/javascript" })) };
  ort.env.wasm.proxy = backend === "wasm"; // in a worker, so that the page stays responsive
  ort.env.webgpu.powerPreference = "high-performance";
  return ort;
}

/** Runs the network on the CPU and draws on a 2D canvas. */
class WasmRenderer {
  static async open(ort, model, canvas, width, height) {
    const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
    const session = await ort.InferenceSession.create(model.slice(), options);
    return Object.assign(new WasmRenderer(), {
      ort, session, width, height, context: canvas.getContext("2d", { alpha: false, willReadFrequently: true }),
      image: new ImageData(width, height), lost: new Promise(() => {}),
    });
  }

  async render(pose) {
    const c2w = new this.ort.Tensor("float32", Float32Array.from(pose), [1, 3, 4]);
    const { rgb } = await this.session.run({ c2w });
    const { image, width, height } = this;
    for (let pixel = 0, area = width * height; pixel < area; pixel++) {
      for (let c = 0; c < 3; c++) image.data[4 * pixel + c] = 255 * rgb.data[c * area + pixel]; // rounds and clamps
      image.data[4 * pixel + 3] = 255;
    }
    this.context.putImageData(image, 0, 0);
  }

  pixels() {
    return this.context.getImageData(0, 0, this.width, this.height).data;
  }

  async close() {
    await this.session.release();
  }
}

const SHADER = `
@group(0) @binding(0) var<storage, read> rgb: array<f32>;
override width: u32;
override height: u32;

@vertex fn triangle(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
  return vec4f(select(-1.0, 3.0, i == 1u), select(-1.0, 3.0, i == 2u), 0.0, 1.0);  // covers the canvas
}

@fragment fn colour(@builtin(position) at: vec4f) -> @location(0) vec4f {
  let pixel = u32(at.y) * width + u32(at.x);
  let area = width * height;
  return vec4f(rgb[pixel], rgb[area + pixel], rgb[2u * area + pixel], 1.0);
}`;

/** Runs the network on the GPU. Its output stays in a GPU buffer, which a render pass draws on the canvas. */
class GpuRenderer {
  static async open(ort, model, canvas, width, height) {
    const session = await ort.InferenceSession.create(model.slice(), {
      executionProviders: ["webgpu"], preferredOutputLocation: "gpu-buffer", logSeverityLevel: 3,
    });
    const device = await ort.env.webgpu.device;
    const self = Object.assign(new GpuRenderer(), { ort, session, device, canvas, width, height, lost: device.lost });
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    self.buffer = device.createBuffer({ size: Math.ceil((3 * width * height) / 4) * 16, usage });
    self.rgb = ort.Tensor.fromGpuBuffer(self.buffer, { dataType: "float32", dims: [1, 3, height, width] });
    self.preparePass();
    return self;
  }

  preparePass() {
    const { device, width, height } = this;
    const format = navigator.gpu.getPreferredCanvasFormat();
    this.context = this.canvas.getContext("webgpu");
    this.context.configure({ device, format, alphaMode: "opaque" });
    const module = device.createShaderModule({ code: SHADER });
    this.pipeline = device.createRenderPipeline({
      layout: "auto", vertex: { module, entryPoint: "triangle" },
      fragment: { module, entryPoint: "colour", targets: [{ format }], constants: { width, height } },
    });
    this.bindings = device.createBindGroup({
      layout: this.pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer: this.buffer } }],
    });
  }

  async render(pose) {
    const c2w = new this.ort.Tensor("float32", Float32Array.from(pose), [1, 3, 4]);
    await this.session.run({ c2w }, { rgb: this.rgb });
    this.draw();
    await this.device.queue.onSubmittedWorkDone(); // otherwise poses would queue up in the GPU
  }

  draw() {
    const encoder = this.device.createCommandEncoder();
    const view = this.context.getCurrentTexture().createView();
    const pass = encoder.beginRenderPass({ colorAttachments: [{ view, loadOp: "clear", storeOp: "store" }] });
    pass.setPipeline(this.pipeline);
    pass.setBindGroup(0, this.bindings);
    pass.draw(3);
    pass.end();
    this.device.queue.submit([encoder.finish()]);
  }

  pixels() {
    this.draw(); // a canvas keeps its content only until the end of a task
    // Read from the canvas, not from the buffer, so that a canvas that stays black is detected.
    return pixelsOf(this.canvas, this.width, this.height);
  }

  async close() {
    await this.session.release();
    this.buffer.destroy();
  }
}

/** Why WebGPU cannot render this model, or should not unless the address asks for it: one sentence, or null. */
async function gpuObstacle(precision, asked) {
  if (!navigator.gpu) return isSecureContext ? "This browser has no WebGPU." : "WebGPU needs https or localhost.";
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return "WebGPU finds no GPU.";
  // A GPU that is emulated in software is many times slower than WASM.
  if (!asked && adapter.info?.isFallbackAdapter) return "WebGPU has only a GPU that is emulated in software.";
  const able = precision !== "fp16" || adapter.features.has("shader-f16");
  return able ? null : "This GPU has no 16-bit arithmetic for the model.";
}

// -- the page ---------------------------------------------------------------------------------------------------------

class Viewer {
  constructor() {
    this.notices = [];
    this.intervals = [];
    this.ready = this.start().catch((error) => this.fail(error));
  }

  /** The newest pose: 12 numbers, rows of a (3, 4) camera-to-world matrix. */
  get pose() {
    return this.orbit.pose();
  }

  /** (H, W, 4) bytes of the image at `pose`. */
  async pixels() {
    await this.ready;
    await this.working;
    if (!this.renderer) throw new Error(this.notices.join(" "));
    return this.renderer.pixels();
  }

  /** Sets {azimuth, elevation, radius}, or some of them, clamped to the range. */
  look(angles) {
    this.orbit.set(angles);
    this.update();
  }

  async start() {
    this.step("Loading scene.json");
    this.scene = readScene(await loadOurs("scene.json"));
    const { name, width, height, model, runtime, range, reference } = this.scene;
    this.orbit = new Orbit(range);
    document.title = element("name").textContent = name;
    element("size").textContent = `${width} × ${height} px, ${megabytes(model.bytes)}`;
    const total = megabytes(model.bytes);
    const onBytes = (count) => this.step(`Loading the model, ${megabytes(count)} of ${total}`, count / model.bytes);
    this.model = await loadOurs(model.file, onBytes);
    this.reference = await loadReference(reference, width, height);
    const size = Object.values(runtime.files).reduce((sum, { bytes }) => sum + bytes, 0);
    this.step(`Loading onnxruntime-web, ${megabytes(size)}`);
    this.runtime = await loadRuntime(runtime);
    await this.open(new URLSearchParams(location.search).get("backend"));
    this.listen();
  }

  /**
   * Changes to "webgpu" or "wasm"; with neither, to WebGPU if possible. Where WebGPU cannot render or renders a wrong
   * image, it changes to WASM with a notice.
   */
  async open(backend) {
    element("backend").disabled = true;
    this.notices = [];
    if (backend !== "wasm") {
      const asked = backend === "webgpu";
      const obstacle = (await gpuObstacle(this.scene.model.precision, asked)) ?? (await this.attempt("webgpu"));
      if (obstacle) this.notices.push(`${obstacle} The CPU renders instead, which is slower.`);
    }
    if (backend === "wasm" || this.notices.length) {
      const obstacle = await this.attempt("wasm");
      if (obstacle) this.notices.push(`${obstacle} The images may be wrong.`);
    }
    this.notify();
    element("loading").hidden = true;
    element("backend").value = this.backend;
    element("backend").disabled = false;
    this.update();
  }

  /** Opens a backend and renders the start view. Returns an error message, or null. */
  async attempt(backend) {
    const { width, height, range, reference } = this.scene;
    this.step(`Starting ${NAMES[backend]}`);
    try {
      await this.close();
      const ort = await startRuntime(this.runtime, backend);
      const Renderer = backend === "webgpu" ? GpuRenderer : WasmRenderer;
      this.renderer = await Renderer.open(ort, this.model, this.freshCanvas(), width, height);
      this.backend = backend;
      const lost = this.renderer.lost.then(() => Promise.reject(new Error("the GPU was lost")));
      await Promise.race([this.renderer.render(new Orbit(range).pose()), lost]);
      this.psnr = psnr(this.renderer.pixels(), this.reference);
    } catch (error) {
      if (backend === "wasm") throw new Error(`The model does not run in this browser (${error.message ?? error}).`);
      return `WebGPU failed (${error.message ?? error}).`;
    }
    const renderer = this.renderer;
    renderer.lost.then(() => this.recover(renderer, "The GPU was lost."));
    if (this.psnr >= reference.lowest_psnr) return null;
    const found = `${this.psnr.toFixed(1)} dB, expected at least ${reference.lowest_psnr}`;
    return `${NAMES[backend]}'s first image differs from ${reference.file} (${found}).`;
  }

  /** A new canvas for a backend, because a canvas cannot change from WebGPU to 2D. */
  freshCanvas() {
    const old = element("stage").querySelector("canvas");
    const canvas = old.cloneNode();
    canvas.width = this.scene.width;
    canvas.height = this.scene.height;
    canvas.setAttribute("aria-label", `${this.scene.name}: arrow keys turn it, plus and minus zoom, Home resets`);
    const focused = document.activeElement === old;
    old.replaceWith(canvas);
    if (focused) canvas.focus();
    return canvas;
  }

  /** Changes to WASM after the GPU failed, if that renderer is still in use. */
  async recover(renderer, reason) {
    if (this.renderer !== renderer) return;
    if (this.backend === "wasm") return this.fail(new Error(reason));
    await this.open("wasm").catch((error) => this.fail(error));
    this.notices.unshift(`${reason} The CPU renders instead, which is slower.`);
    this.notify();
  }

  async close() {
    const renderer = this.renderer;
    this.renderer = null;
    await Promise.race([this.working, renderer?.lost]); // a lost GPU may never finish its image
    await renderer?.close().catch(() => {});
  }

  /** Renders the newest pose. During rendering, it is rendered after the present image. */
  update() {
    this.dirty = true;
    this.working ??= this.work().finally(() => (this.working = null));
  }

  async work() {
    let last = null;
    for (let renderer; this.dirty && (renderer = this.renderer); ) {
      this.dirty = false;
      const begin = performance.now();
      try {
        await renderer.render(this.pose);
      } catch (error) {
        this.recover(renderer, `${NAMES[this.backend]} failed (${error.message ?? error}).`); // waits for this to end
        return;
      }
      const end = performance.now();
      this.showSpeed(end - begin, last && end - last);
      last = end;
      await new Promise(requestAnimationFrame);
    }
  }

  showSpeed(ms, interval) {
    this.ms = ms;
    if (interval) this.intervals = [...this.intervals.slice(-9), interval];
    const mean = this.intervals.reduce((sum, x) => sum + x, 0) / this.intervals.length;
    const fps = this.intervals.length ? `, ${(1000 / mean).toFixed(mean > 100 ? 1 : 0)} fps` : "";
    element("speed").textContent = `${ms.toFixed(ms < 10 ? 1 : 0)} ms${fps}`;
  }

  step(text, share) {
    element("loading").hidden = false;
    element("step").textContent = text;
    element("progress").hidden = false;
    if (share === undefined) element("progress").removeAttribute("value");
    else element("progress").value = share;
  }

  notify() {
    element("notice").textContent = this.notices.join(" ");
    element("notice").hidden = !this.notices.length;
  }

  fail(error) {
    this.notices.push(error.message);
    this.notify();
    element("loading").hidden = true;
  }

  listen() {
    element("controls").hidden = false;
    const stage = element("stage");
    const move = (change) => {
      change();
      this.update();
    };
    listenToPointers(stage, this.orbit, move);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      move(() => this.orbit.zoom(Math.exp(clamp(event.deltaY * (event.deltaMode ? 20 : 1), [-200, 200]) / 1000)));
    }, { passive: false });
    stage.addEventListener("keydown", (event) => {
      const action = keyAction(event, this.orbit);
      if (!action) return;
      event.preventDefault();
      move(action);
    });
    element("in").onclick = () => move(() => this.orbit.zoom(1 / ZOOM_STEP));
    element("out").onclick = () => move(() => this.orbit.zoom(ZOOM_STEP));
    element("in").disabled = element("out").disabled = this.scene.range.radius[0] === this.scene.range.radius[1];
    element("reset").onclick = () => move(() => this.orbit.reset());
    element("backend").onchange = ({ target }) => {
      history.replaceState(null, "", `?backend=${target.value}`);
      this.open(target.value).catch((error) => this.fail(error));
    };
  }
}

function keyAction(event, orbit) {
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  return {
    ArrowLeft: () => orbit.drag(-KEY_STEP, 0),
    ArrowRight: () => orbit.drag(KEY_STEP, 0),
    ArrowUp: () => orbit.drag(0, -KEY_STEP),
    ArrowDown: () => orbit.drag(0, KEY_STEP),
    "+": () => orbit.zoom(1 / ZOOM_STEP),
    "=": () => orbit.zoom(1 / ZOOM_STEP),
    "-": () => orbit.zoom(ZOOM_STEP),
    Home: () => orbit.reset(),
  }[event.key];
}

/** One pointer drags, two pointers zoom. */
function listenToPointers(stage, orbit, move) {
  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const apart = pointers.size === 2 ? spread() : null;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (apart) move(() => orbit.zoom(apart / Math.max(spread(), 1)));
    else if (pointers.size === 1) {
      const size = Math.min(stage.clientWidth, stage.clientHeight);
      move(() => orbit.drag((event.clientX - before.x) / size, (event.clientY - before.y) / size));
    }
  });
  for (const type of ["pointerup", "pointercancel"]) {
    stage.addEventListener(type, (event) => pointers.delete(event.pointerId));
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB`;

window.viewer = new Viewer();
