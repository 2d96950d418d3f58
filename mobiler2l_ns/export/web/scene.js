// Reads scene.json. The folder may come from a stranger, so everything that the page uses is checked first.

const MAX_SIDE = 16384; // pixels
const MAX_BYTES = 2 ** 31;
const MAX_LENGTH = 1e9; // world units

const between = (low, high) => (x) => typeof x === "number" && x >= low && x <= high;
const whole = (high) => (x) => Number.isInteger(x) && x >= 1 && x <= high;
const list = (count, check) => (x) => Array.isArray(x) && x.length === count && x.every(check);
const span = (check) => (x) => list(2, check)(x) && x[0] <= x[1];
const matches = (pattern) => (x) => typeof x === "string" && pattern.test(x);

const file = matches(/^[A-Za-z0-9_][A-Za-z0-9_.-]*$/); // of the folder itself: no slash, no address
const angle = between(-10, 10); // an azimuth may pass the half circle that atan2 returns
const tilt = between(-1.571, 1.571); // a quarter of a circle, rounded up
const length = between(0, MAX_LENGTH);
const axis = list(3, between(-1.001, 1.001));
// No other package: the CDN has those of strangers, too.
const RUNTIME = /^(ort|https:\/\/cdn\.jsdelivr\.net\/npm\/onnxruntime-web@\d+\.\d+\.\d+\/dist)\/$/;
const ROLES = ["script", "factory", "wasm"];

/** What each entry must be. The page uses no other entries. */
const RULES = {
  name: (x) => typeof x === "string" && x.length <= 1000,
  height: whole(MAX_SIDE),
  width: whole(MAX_SIDE),
  "model.file": file,
  "model.bytes": whole(MAX_BYTES),
  "model.precision": matches(/^fp(32|16)$/),
  "range.centre": list(3, between(-MAX_LENGTH, MAX_LENGTH)),
  "range.up": axis,
  "range.east": axis,
  "range.radius": span(length),
  "range.elevation": span(tilt),
  "range.azimuth": (x) => x === null || span(angle)(x),
  "range.start.azimuth": angle,
  "range.start.elevation": tilt,
  "range.start.radius": length,
  "reference.file": file,
  "reference.lowest_psnr": between(0, 100),
  "runtime.base": matches(RUNTIME),
  "runtime.files": (x) => Object.keys(x ?? {}).sort().join() === [...ROLES].sort().join(),
};
for (const role of ROLES) {
  RULES[`runtime.files.${role}.file`] = file;
  RULES[`runtime.files.${role}.bytes`] = whole(MAX_BYTES);
  RULES[`runtime.files.${role}.integrity`] = matches(/^sha384-[A-Za-z0-9+/]{64}$/);
}

/** The entry at a path of names, or undefined. */
const entry = (scene, path) => path.split(".").reduce((value, key) => value?.[key], scene);

/** The content of scene.json, from its bytes. */
export function readScene(bytes) {
  let scene;
  try {
    scene = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new Error("scene.json is damaged: export the scene again.");
  }
  const wrong = Object.keys(RULES).find((path) => !RULES[path](entry(scene, path)));
  if (wrong) throw new Error(`scene.json is damaged (${wrong}): export the scene again.`);
  return scene;
}
