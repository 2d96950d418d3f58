"""The compiled loops that shade the samples of a fused nerfacto. Importing this module imports numba.

A batch of samples is an array with one row per channel and one column (slot) per sample, so the inner loops run over
samples, which LLVM vectorises. The functions hold no GIL and share nothing, so threads can call them at the same time.

N: rays, E: edges of the intervals on a ray (number of samples + 1), L: levels, T: rows of a level's table, F: features
per level (even), S: slots, H: outputs of the colour network's first layer. All floats are float32.
"""

import numpy as np

from mobiler2l_ns.teacher.fused_math import HALF, ONE, ZERO, compiled, contraction, exponential

# Rays that are shaded together, and samples of each that are evaluated at once.
RAYS, STEP = 128, 2
SLOTS = RAYS * STEP


@compiled
def encode(table, scalings, positions, n, x):
    """Writes the features (L F, S) of n positions (3, S) in 0..1; table (L, T, F); see ``hash_encoding``."""
    features = table.shape[2]
    # Unsigned numbers index without a test for negative ones.
    mask, prime_y, prime_z = np.uint64(table.shape[1] - 1), np.uint64(2654435761), np.uint64(805459861)
    for row in range(0, table.shape[0] * features, 2):
        level, f = row // features, row % features
        scale, rows, g, even, odd = scalings[level], table[level], f + 1, x[row], x[row + 1]
        xs, ys, zs = positions[0], positions[1], positions[2]
        for s in range(n):
            px, py, pz = xs[s] * scale, ys[s] * scale, zs[s] * scale
            ix, iy, iz = np.int32(px), np.int32(py), np.int32(pz)
            u, v, w = px - np.float32(ix), py - np.float32(iy), pz - np.float32(iz)
            x0, y0, z0 = np.uint64(ix), np.uint64(iy) * prime_y, np.uint64(iz) * prime_z
            x1, y1, z1 = x0 + np.uint64(1), y0 + prime_y, z0 + prime_z
            a0, a1, a2, a3 = x0 ^ y0, x1 ^ y0, x0 ^ y1, x1 ^ y1
            b0, b1, b2, b3 = (ONE - u) * (ONE - v), u * (ONE - v), (ONE - u) * v, u * v
            i0, i1, i2, i3 = (a0 ^ z0) & mask, (a1 ^ z0) & mask, (a2 ^ z0) & mask, (a3 ^ z0) & mask
            j0, j1, j2, j3 = (a0 ^ z1) & mask, (a1 ^ z1) & mask, (a2 ^ z1) & mask, (a3 ^ z1) & mask
            front = b0 * rows[i0, f] + b1 * rows[i1, f] + b2 * rows[i2, f] + b3 * rows[i3, f]
            back = b0 * rows[j0, f] + b1 * rows[j1, f] + b2 * rows[j2, f] + b3 * rows[j3, f]
            even[s] = front + w * (back - front)
            front = b0 * rows[i0, g] + b1 * rows[i1, g] + b2 * rows[i2, g] + b3 * rows[i3, g]
            back = b0 * rows[j0, g] + b1 * rows[j1, g] + b2 * rows[j2, g] + b3 * rows[j3, g]
            odd[s] = front + w * (back - front)


@compiled
def add_product(weight, x, n, y):
    """Adds weight @ x to y, n slots; the numbers of rows and columns of the weight are multiples of 4."""
    for o in range(0, weight.shape[0], 2):
        y0, y1 = y[o], y[o + 1]
        for i in range(0, weight.shape[1], 4):
            x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
            a0, a1, a2, a3 = weight[o, i], weight[o, i + 1], weight[o, i + 2], weight[o, i + 3]
            b0, b1, b2, b3 = weight[o + 1, i], weight[o + 1, i + 1], weight[o + 1, i + 2], weight[o + 1, i + 3]
            for s in range(n):
                y0[s] += a0 * x0[s] + a1 * x1[s] + a2 * x2[s] + a3 * x3[s]
                y1[s] += b0 * x0[s] + b1 * x1[s] + b2 * x2[s] + b3 * x3[s]


@compiled
def forward(network, first, x, other, n):
    """The outputs of n slots behind layer ``first`` and the following layers of an MLP with ReLU between layers.

    Args:
        network: Weights (each layer's matrix and then its bias, flat) and the layers' sizes: rows, columns, offset.
        x: Input of layer ``first``, before the ReLU if it is not layer 0.
        other: A second buffer of this size. Both are overwritten, and the one with the outputs is returned.
    """
    weights, layers = network
    for i in range(first, layers.shape[0]):
        rows, columns, offset = layers[i, 0], layers[i, 1], layers[i, 2]
        bias = weights[offset + rows * columns :]
        if i > 0:
            for c in range(columns):
                for s in range(n):
                    x[c, s] = max(x[c, s], ZERO)
        for o in range(rows):
            other[o, :n] = bias[o]
        add_product(weights[offset : offset + rows * columns].reshape(rows, columns), x, n, other)
        x, other = other, x
    return x


@compiled
def locate(rays, contract, alive, k, end, positions, widths):
    """Writes positions in the unit cube and widths of the samples k to end - 1 of some rays; returns their number."""
    rays_o, rays_d, edges = rays
    n = 0
    for ray in alive:
        for i in range(k, end):
            o, d, t = rays_o[ray], rays_d[ray], (edges[ray, i] + edges[ray, i + 1]) * HALF
            x, y, z = o[0] + d[0] * t, o[1] + d[1] * t, o[2] + d[2] * t
            scale, shift = (contraction(x, y, z), HALF) if contract else (ONE, ZERO)
            positions[0, n], positions[1, n], positions[2, n] = x * scale + shift, y * scale + shift, z * scale + shift
            widths[n] = edges[ray, i + 1] - edges[ray, i]
            n += 1
    return n


@compiled
def add_colours(head, base, queue, n, x, other, rgb):
    """Adds the weighted colours of n queued features to the rays' colours; base (N, H): the directions' share."""
    queue_features, queue_ray, queue_weight = queue
    for s in range(n):
        for o in range(base.shape[1]):
            x[o, s] = base[queue_ray[s], o]
    weights, layers = head
    rows, columns, offset = layers[0, 0], layers[0, 1], layers[0, 2]
    add_product(weights[offset : offset + rows * columns].reshape(rows, columns), queue_features, n, x)
    out = forward(head, 1, x, other, n)
    for c in range(3):
        for s in range(n):
            rgb[queue_ray[s], c] += queue_weight[s] / (ONE + exponential(-out[c, s]))


@compiled
def composite(edges, samples, alive, out, passed, options, state, queue, queued, depth):
    """Adds evaluated samples to their rays and their features to groups; full groups are queued for their colour.

    Args:
        samples: The first of each ray's samples that were evaluated, and the one behind the last.
        out: Outputs of the density network, with the fraction of light that each sample lets through in ``passed``.
        state: Transmittance, and sum of the features and of the weights of the open group, for each ray.
        queue: Features, ray and weight of the ``queued`` groups, the new number of which is returned.
    """
    _, last_sample, group, min_weight, min_transmittance = options
    transmittance, sums, group_weight = state
    first, end = samples
    final_sample = edges.shape[1] - 2
    for index, ray in enumerate(alive):
        for i in range(first, end):
            s = index * (end - first) + i - first
            before, after = transmittance[ray], transmittance[ray] * passed[s]
            transmittance[ray] = after
            if before > HALF and (after <= HALF or i == final_sample):
                depth[ray] = (edges[ray, i] + edges[ray, i + 1]) * HALF
            final = after < min_transmittance or i == final_sample
            weight = before if final and last_sample else before - after
            group_weight[ray] += weight
            for f in range(sums.shape[1]):
                sums[ray, f] += weight * out[f, s]
            if group_weight[ray] > (min_weight if final else group):
                queue[1][queued], queue[2][queued] = ray, group_weight[ray]
                for f in range(sums.shape[1]):
                    queue[0][f, queued] = sums[ray, f] / group_weight[ray]
                    sums[ray, f] = ZERO
                group_weight[ray] = ZERO
                queued += 1
            if final:
                break
    return queued


@compiled
def shade_block(rays, base, field, head, options, outputs):
    """``shade`` for up to RAYS rays. Samples behind a spent transmittance are not evaluated."""
    table, scalings, network, density_scale = field
    rgb, opacity, depth = outputs
    num_rays, num_samples, features = rgb.shape[0], rays[2].shape[1] - 1, network[1][-1, 0]
    height = max(table.shape[0] * table.shape[2] + 3, max(network[1][:, :2].max(), head[1][:, :2].max()))
    x, other = np.zeros((height, 2 * SLOTS), np.float32), np.zeros((height, 2 * SLOTS), np.float32)
    positions, passed = np.empty((3, SLOTS), np.float32), np.empty(SLOTS, np.float32)
    transmittance, alive = np.ones(num_rays, np.float32), np.arange(num_rays)
    state = transmittance, np.zeros((num_rays, features), np.float32), np.zeros(num_rays, np.float32)
    queue = np.zeros((features, 2 * SLOTS), np.float32), np.empty(2 * SLOTS, np.int64), np.empty(2 * SLOTS, np.float32)
    queued = 0
    for first in range(0, num_samples, STEP):
        end = min(first + STEP, num_samples)
        n = locate(rays, options[0], alive, first, end, positions, passed)
        encode(table, scalings, positions, n, x)
        out = forward(network, 0, x, other, n)
        for s in range(n):
            passed[s] = exponential(-density_scale * exponential(out[0, s]) * passed[s])
        queued = composite(rays[2], (first, end), alive, out, passed, options, state, queue, queued, depth)
        alive = alive[transmittance[alive] >= options[4]]
        if queued > SLOTS or len(alive) == 0 or end == num_samples:
            add_colours(head, base, queue, queued, x, other, rgb)
            queued = 0
        if len(alive) == 0:
            break
    opacity[:] = ONE - transmittance


@compiled
def shade(rays_o, rays_d, edges, base, field, head, options, rgb, opacity, depth):
    """Renders rays that are sampled between given edges.

    Args:
        rays_o: Origins (N, 3) in the axes of the unit cube, or contracted to it; rays_d: directions (N, 3).
        edges: Distances (N, E).
        base: Outputs (N, H) of the colour network's first layer for the direction alone.
        field: Hash table (L, T, F), the levels' resolutions (L,), the density network, and the density's scale.
        head: The colour network; its first layer takes the density network's outputs.
        options: Whether space is contracted, whether the last sample extends to infinity, the weight of a group of
            samples that have one colour, the smallest weight with a colour, and the transmittance that ends a ray.
        rgb: Gets the colours (N, 3) without a background; opacity and depth get weights and median distances (N,).
    """
    for start in range(0, rays_o.shape[0], RAYS):
        i = slice(start, min(start + RAYS, rays_o.shape[0]))
        shade_block((rays_o[i], rays_d[i], edges[i]), base[i], field, head, options, (rgb[i], opacity[i], depth[i]))
