"""The compiled loops that place the samples of a fused nerfacto. Importing this module imports numba.

They hold no GIL and share nothing, so threads can call them at the same time.

N: rays, E: edges of the intervals on a ray (number of samples + 1), R: cells along each axis of the grid.
All floats are float32. Distances are in world units, ``near`` and ``far`` in the model's spacing.
"""

import numpy as np

from mobiler2l_ns.teacher.fused_math import HALF, ONE, TWO, ZERO, compiled, contraction, exponential

# Intervals of a ray, and those that are evaluated at once.
NUM_INTERVALS, BLOCK = 128, 32


@compiled
def to_distance(spacing, piecewise):
    """The distance of a position in the model's spacing, which is uniform or nerfstudio's piecewise one."""
    if not piecewise:
        return spacing
    linear, inverse = TWO * spacing, ONE / (TWO - TWO * spacing)
    return linear if spacing < HALF else inverse


@compiled
def march(ray_o, ray_d, near, far, grid, contract, piecewise, stop, weights, index, opacities):
    """Writes the weights of a ray's intervals by the grid (R, R, R) and returns their sum.

    Weights are zero once the transmittance is below ``stop``.
    """
    resolution, cells, step = np.int32(grid.shape[0]), grid.reshape(-1), (far - near) / np.float32(NUM_INTERVALS)
    size, last = np.float32(resolution), np.float32(resolution - 1)
    ox, oy, oz, dx, dy, dz = ray_o[0], ray_o[1], ray_o[2], ray_d[0], ray_d[1], ray_d[2]
    transmittance = ONE
    weights[:] = ZERO
    # Separate loops, because LLVM does not vectorise one that gathers from memory.
    for block in range(0, NUM_INTERVALS, BLOCK):
        for i in range(BLOCK):
            start = to_distance(near + step * np.float32(block + i), piecewise)
            end = to_distance(near + step * np.float32(block + i + 1), piecewise)
            t = (start + end) * HALF
            x, y, z = ox + dx * t, oy + dy * t, oz + dz * t
            scale, shift = (contraction(x, y, z), HALF) if contract else (ONE, ZERO)
            x, y, z = x * scale + shift, y * scale + shift, z * scale + shift
            a = np.int32(min(max(x * size, ZERO), last))
            b = np.int32(min(max(y * size, ZERO), last))
            c = np.int32(min(max(z * size, ZERO), last))
            index[i], opacities[i] = np.int32(np.int32(a * resolution + b) * resolution) + c, end - start
        filled = ZERO
        for i in range(BLOCK):
            opacities[i] *= cells[np.uint32(index[i])]
            filled += opacities[i]
        if filled == ZERO:
            continue
        for i in range(BLOCK):
            opacities[i] = ONE - exponential(-opacities[i])
        for i in range(BLOCK):
            weights[block + i] = transmittance * opacities[i]
            transmittance -= weights[block + i]
        if transmittance < stop:
            break
    return ONE - transmittance


@compiled
def place(near, far, weights, total, padding, piecewise, edges):
    """Writes the distances (E,) between which a ray has equal weight: ``fast_nerfacto.inverse_cdf`` for one ray."""
    count = edges.shape[0]
    spread = padding / np.float32(NUM_INTERVALS)
    step, share = (far - near) / np.float32(NUM_INTERVALS), (total + padding) / np.float32(count)
    interval, below, here = 0, ZERO, weights[0] + spread
    for i in range(count):
        quantile = (np.float32(i) + HALF) * share
        while below + here < quantile and interval < NUM_INTERVALS - 1:
            below += here
            interval += 1
            here = weights[interval] + spread
        edges[i] = to_distance(near + step * (np.float32(interval) + (quantile - below) / here), piecewise)


@compiled
def propose(rays_o, rays_d, near, far, grid, contract, piecewise, padding, limits, edges, opacity):
    """Writes the opacity (N,) of rays by the grid, and the edges (N, E) of the samples where it exceeds limits[0].

    Rays are in the axes of the unit cube, or contracted to it. They end where the transmittance is below limits[1].
    """
    weights, index = np.empty(NUM_INTERVALS, np.float32), np.empty(BLOCK, np.int32)
    opacities = np.empty(BLOCK, np.float32)
    for i in range(rays_o.shape[0]):
        o, d = rays_o[i], rays_d[i]
        total = march(o, d, near[i], far[i], grid, contract, piecewise, limits[1], weights, index, opacities)
        opacity[i] = total
        if total > limits[0]:
            place(near[i], far[i], weights, total, padding, piecewise, edges[i])
