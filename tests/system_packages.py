"""Marks tests that need optional system packages: they are skipped where one is missing, with the command to run."""

import pytest
from missing_packages import OPEN3D, cure, missing


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test, class or module on machines without these Debian packages.

    Args:
        packages: Names in scripts/missing_packages.py; a KeyError for any other.
    """
    absent = missing(packages)
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: run {cure(absent)}")


# For ns-export, ns-process-data and open3d itself.
needs_open3d = needs(*OPEN3D)
