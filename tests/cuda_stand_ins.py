"""The CUDA functions of gsplat and nerfacc in torch, for tests with few Gaussians and samples.

The models around them are nerfstudio's own, so tests see the real checkpoints, cameras, backgrounds and outputs.
"""

import nerfacc
import pytest
import torch
from nerfstudio.models import splatfacto

from mobiler2l_ns.teacher import kinds as teacher_kinds

SAMPLES, NEAR, FAR = 500, 2.0, 7.0


def rasterize(means, quats, scales, opacities, colors, viewmats, Ks, width, height, rasterize_mode, **_):
    """gsplat's ``rasterization`` of isotropic Gaussians with colours of degree 0: colours and expected z (1, H, W, 4).

    Zwicker et al. 2001 (EWA): a Gaussian's shadow has the covariance s^2 J J^T + 0.3 pixel^2, J the projection's
    Jacobian. Nearest first, each covers 1 - alpha of what is behind it.
    """
    (focal_x, focal_y), (cx, cy) = (Ks[0, 0, 0], Ks[0, 1, 1]), (Ks[0, 0, 2], Ks[0, 1, 2])
    x, y, z = (means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]).unbind(-1)
    centres = torch.stack([focal_x * x / z + cx, focal_y * y / z + cy], dim=-1)[None]  # (1, N, 2)
    rgb = (0.28209479 * colors[:, 0] + 0.5).clamp_min(0)
    pixels = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")[::-1], dim=-1) + 0.5
    picture, through = torch.zeros(height, width, 4), torch.ones(height, width, 1)
    for i in z.argsort().tolist():
        jacobian = torch.zeros(2, 3)
        jacobian[0, 0], jacobian[0, 2] = focal_x / z[i], -focal_x * x[i] / z[i] ** 2
        jacobian[1, 1], jacobian[1, 2] = focal_y / z[i], -focal_y * y[i] / z[i] ** 2
        shadow = scales[i, 0] ** 2 * jacobian @ jacobian.T
        blurred = shadow + 0.3 * torch.eye(2)
        opacity = opacities[i]
        if rasterize_mode == "antialiased":
            opacity = opacity * (shadow.det() / blurred.det()).clamp_min(0).sqrt()
        offset = pixels - centres[0, i]
        exponent = (offset @ torch.linalg.inv(blurred) * offset).sum(-1, keepdim=True) / 2
        alpha = (opacity * torch.exp(-exponent)).clamp_max(0.999)
        alpha = torch.where((alpha < 1 / 255) | (z[i] < 0.01), 0.0, alpha)
        picture = picture + through * alpha * torch.cat([rgb[i], z[i : i + 1]])
        through = through * (1 - alpha)
    alpha = 1 - through
    picture = torch.cat([picture[..., :3], picture[..., 3:] / alpha.clamp_min(1e-10)], dim=-1)
    centres.absgrad = torch.zeros_like(centres)  # what densification looks at after the backward pass
    info = {"means2d": centres, "radii": torch.ones(1, len(means)), "width": width, "height": height, "n_cameras": 1,
            "gaussian_ids": torch.arange(len(means))}  # fmt: skip
    return picture[None], alpha[None], info


def sample_evenly(self, rays_o, rays_d, **_):
    """``OccGridEstimator.sampling`` of a full grid: SAMPLES samples on every ray, from NEAR to FAR."""
    edges = torch.linspace(NEAR, FAR, SAMPLES + 1).repeat(len(rays_o), 1)
    rays = torch.arange(len(rays_o)).repeat_interleave(SAMPLES)
    return rays, edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)


def pack_info(ray_indices, n_rays):
    """First sample and number of samples (n_rays, 2) of each ray."""
    counts = torch.bincount(ray_indices, minlength=n_rays)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def weights_from_density(t_starts, t_ends, sigmas, packed_info):
    """``nerfacc.render_weight_from_density``: weights, transmittances and alphas of packed samples."""
    optical = sigmas * (t_ends - t_starts)
    before = optical.cumsum(0) - optical
    ray = torch.arange(len(packed_info)).repeat_interleave(packed_info[:, 1])
    through = torch.exp(-(before - before[packed_info[ray, 0]]))
    alphas = 1 - torch.exp(-optical)
    return through * alphas, through, alphas


@pytest.fixture
def as_if_cuda(monkeypatch):
    """splatfacto and instant-ngp render on a CPU, has_cuda() is true for it, and no kernels are missing."""
    monkeypatch.setattr(teacher_kinds, "has_cuda", lambda device: True)
    monkeypatch.setattr(teacher_kinds, "missing_kernels", lambda model_class: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(splatfacto, "rasterization", rasterize)
    monkeypatch.setattr(nerfacc.OccGridEstimator, "sampling", sample_evenly)
    monkeypatch.setattr(nerfacc, "pack_info", pack_info)
    monkeypatch.setattr(nerfacc, "render_weight_from_density", weights_from_density)
    with torch.compiler.set_stance("force_eager"):
        yield
