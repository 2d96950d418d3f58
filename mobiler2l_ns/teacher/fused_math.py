"""What the compiled loops of the fused nerfacto share. Importing this module imports numba.

numba's cache notices changes in a function's own file alone. So after a change here, change the modules that use it or
delete their caches (``__pycache__/*.nb*``).
"""

import inspect

import numba
import numpy as np

ZERO, QUARTER, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.25, 0.5, 1, 2))


def compiled(function):
    """Compiles a function at its first call, with a cache on disk where numba finds a folder that it can write."""
    # nnan and ninf are left out: a density may overflow.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"}}
    function = inspect.unwrap(function)  # the tests wrap every function of the package to check its shapes
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@compiled
def exponential(x):
    """exp(x) within 1e-5 of its value, for x clamped to -80..80. Unlike the library's, it is vectorised."""
    x = min(max(x, np.float32(-80)), np.float32(80)) * np.float32(1.4426950408889634)
    whole = np.int32(np.int32(x + np.float32(1024.5)) - np.int32(1024))
    r = x - np.float32(whole)
    # 2^r = e^(r ln 2) for r in -0.5..0.5
    p = np.float32(1.5403530393e-4)
    p = np.float32(1.3333558146e-3) + r * p
    p = np.float32(9.6181291076e-3) + r * p
    p = np.float32(5.5504108665e-2) + r * p
    p = np.float32(2.4022650696e-1) + r * p
    p = np.float32(6.9314718056e-1) + r * p
    return (ONE + r * p) * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled
def contraction(x, y, z):
    """Scale of a point around the origin: mip-NeRF 360, Eq. 10, with the maximum norm, shrunk to the unit cube."""
    inverse = ONE / max(max(abs(x), abs(y)), max(abs(z), ONE))
    return (TWO - inverse) * inverse * QUARTER
