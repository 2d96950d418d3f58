"""Names the optional system packages that this machine does not have, and what needs them.

setup.sh runs it at its end; the tests use it to decide which of them can run here. With --list it prints the names of
the packages alone, for .ci/run.
"""

import ctypes
import shutil
import sys
from typing import Dict, List, Sequence

# Debian package -> the library that it holds. The wheels of open3d and pymeshlab load these; on other systems than
# Linux the wheels bring them.
LIBRARIES = {
    "libusb-1.0-0": "libusb-1.0.so.0",
    "libegl1": "libEGL.so.1",
    "libgl1": "libGL.so.1",
    "libopengl0": "libOpenGL.so.0",
}
# Debian package -> its command, under any of these names.
PROGRAMS = {
    "ffmpeg": ("ffmpeg",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "npm": ("npm",),
    "nodejs": ("node",),
}
OPEN3D = tuple(LIBRARIES)
# What needs packages -> the packages. nerfstudio's commands import open3d and pymeshlab when they start, and look for
# ffmpeg even where they write images.
USES = {
    "ns-export and ns-process-data": OPEN3D,
    "ns-process-data and ns-render, except ns-render dataset": ("ffmpeg",),
    "tests of the viewer and the web page": ("chromium", "npm", "nodejs"),
}


def is_installed(package: str) -> bool:
    """Whether a package of LIBRARIES or PROGRAMS is there: its library can be loaded, or its command found."""
    if package in PROGRAMS:
        return any(shutil.which(name) for name in PROGRAMS[package])
    if not sys.platform.startswith("linux"):
        return True
    try:
        ctypes.CDLL(LIBRARIES[package])
    except OSError:
        return False
    return True


def missing(packages: Sequence[str]) -> List[str]:
    """Those of the packages that are not installed, in their order."""
    return [package for package in packages if not is_installed(package)]


def cure(packages: Sequence[str]) -> str:
    """The command that installs packages."""
    return f"`apt install {' '.join(packages)}`"


def missing_by_use() -> Dict[str, List[str]]:
    """What cannot be used here -> the packages that it lacks."""
    return {use: absent for use, packages in USES.items() if (absent := missing(packages))}


def sentence(absent: Dict[str, List[str]]) -> str:
    """One sentence about packages that are missing, see ``missing_by_use``."""
    parts = "; ".join(f"{use}: {', '.join(packages)}" for use, packages in absent.items())
    command = cure([package for packages in absent.values() for package in packages])
    return f"Optional system packages are missing ({parts}); on Debian and Ubuntu {command} installs them."


def main(arguments: Sequence[str]) -> None:
    """Prints the sentence or the list; nothing where all packages are installed."""
    absent = missing_by_use()
    if absent:
        print(" ".join(sum(absent.values(), [])) if "--list" in arguments else sentence(absent))


if __name__ == "__main__":
    main(sys.argv[1:])
