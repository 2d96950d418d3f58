"""Ray-traces a toy island as a small capture in the NeRF-synthetic ("blender") format.

The scene is built from triangles and procedural paint, so nothing has to be downloaded and the exact depth is known.
World axes: z is up and the grass lies at z = 0; lengths are in scene units and everything fits in [-1.2, 1.2]^3.

    python scripts/make_demo_scene.py --output data/demo
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from demo_scene.capture import FORMAT, is_done, write_capture


def make_demo_scene(
    output: Path,
    resolution: int = 160,
    num_train: Annotated[int, tyro.conf.arg(name="train")] = 120,
    num_val: Annotated[int, tyro.conf.arg(name="val")] = 8,
    num_test: Annotated[int, tyro.conf.arg(name="test")] = 16,
    samples: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> bool:
    """Renders a toy island in the NeRF-synthetic format, unless it is there already.

    Args:
        output: Folder to make.
        resolution: Width and height of the square images, in pixels.
        num_train: Number of training views, spread evenly.
        num_val: Number of validation views, at random.
        num_test: Number of test views, at random, with depth.
        samples: Rays per pixel, a square number.
        seed: Seed of camera positions and sub-pixel jitter.
        overwrite: Replace a demo scene that has other settings.

    Returns:
        Whether anything was rendered.

    Raises:
        FileExistsError: If `output` holds something else and may not be replaced.
        ValueError: If `samples` is not a square number.
    """
    if samples < 1 or round(samples**0.5) ** 2 != samples:
        raise ValueError(f"--samples must be a square number such as 1, 4 or 9, not {samples}.")
    settings = {"format": FORMAT, "resolution": resolution, "train": num_train, "val": num_val, "test": num_test,
                "samples": samples, "seed": seed}  # fmt: skip
    output = Path(output).resolve()
    if is_done(output, settings, overwrite):
        print(f"{output} is already there with these settings.")
        return False
    write_capture(output, settings)
    print(f"{output} is ready.")
    return True


def main() -> int:
    """Reads the command line; returns the exit code."""
    try:
        tyro.cli(make_demo_scene)
    except (FileExistsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
