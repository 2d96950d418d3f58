"""Marks tests that need optional system packages: they are skipped where one is missing, with the command to run."""

import pytest
from missing_packages import NS_EXPORT, cure, missing


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test, class or module on machines without these Debian packages.

    Args:
        packages: Names in scripts/missing_packages.py; a KeyError for any other.
    """
    absent = missing(packages)
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: run {cure(absent)}")


needs_ns_export = needs(*NS_EXPORT)
