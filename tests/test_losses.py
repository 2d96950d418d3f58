"""The losses, by hand and against torchmetrics."""

import pytest
import torch

from mobiler2l_ns.training.losses import (
    alpha_loss,
    depth_loss,
    ignore_unknown,
    rgb_loss,
    structure_loss,
    surface_loss,
)


def test_losses_by_hand():
    prediction = torch.tensor([0.5, 0.5, 0.5, 0.5]).view(1, 1, 4, 1)
    target = torch.tensor([0.7, 0.1, 0.0, 0.9]).view(1, 1, 4, 1)
    # 0.04 + 0.16 + 0.25 + 0.16, by 4
    assert float(alpha_loss(prediction, target)) == pytest.approx(0.1525)
    accumulation = torch.tensor([1.0, 0.5, 1.0, 0.0]).view(1, 1, 4, 1)
    # 0.04 + 0.5 * 0.16, none where depth is 0, none where nothing is seen, by 4
    assert float(depth_loss(prediction, target, accumulation)) == pytest.approx(0.03)


def test_a_cell_counts_as_far_as_it_is_known():
    """Two cells of 2 x 2 pixels. In the first, three pixels have a depth and weigh 1, 1/2 and 0; in the other, none."""
    target = torch.tensor([[0.2, 0.4, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]]).view(1, 2, 4, 1)
    accumulation = torch.tensor([[1.0, 0.5, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]).view(1, 2, 4, 1)
    prediction = torch.tensor([0.5, 0.7]).view(1, 1, 2, 1).requires_grad_()
    loss = surface_loss(prediction, target, accumulation)
    # The cell's weight is 1.5 / 4, its depth (0.2 + 0.5 * 0.4) / 1.5.
    assert float(loss) == pytest.approx(0.375 * (0.5 - 0.4 / 1.5) ** 2 / 2)
    loss.backward()
    assert prediction.grad.flatten().tolist() == pytest.approx([0.375 * (0.5 - 0.4 / 1.5), 0.0])


def test_a_ray_that_meets_nothing_is_drawn_to_the_far_plane():
    """Two cells of 2 x 2 pixels: an empty one, and one in which a single pixel meets a surface of unknown depth."""
    target = torch.zeros(1, 2, 4, 1)
    accumulation = torch.tensor([[0.0, 0.004, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).view(1, 2, 4, 1)
    prediction = torch.tensor([0.4, 0.7]).view(1, 1, 2, 1).requires_grad_()
    loss = surface_loss(prediction, target, accumulation)
    assert float(loss) == pytest.approx(0.1 * 0.6**2 / 2)
    loss.backward()
    assert prediction.grad.flatten().tolist() == pytest.approx([-0.1 * 0.6, 0.0])


def test_equal_images_have_no_structure_loss():
    image = torch.rand(2, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    assert float(structure_loss(image, image)) == pytest.approx(0.0, abs=1e-5)
    # Constants a and b: (2ab + c1) / (a^2 + b^2 + c1) with c1 = 1e-4
    black = torch.zeros(1, 8, 8, 3)
    for side in (8, 4, 1):  # a patch that is smaller than a window, and R2L's single rays
        small = black[:, :side, :side]
        assert float(structure_loss(small, small + 0.5)) == pytest.approx(1 - 1e-4 / 0.2501, abs=1e-5)


def test_structure_is_the_ssim_of_windows_that_are_half_a_window_apart():
    random = torch.Generator().manual_seed(0)
    target = torch.rand(2, 19, 26, 3, generator=random)
    prediction = (target + 0.3 * torch.rand(2, 19, 26, 3, generator=random)).clamp(0, 1)
    x, y = (image.permute(0, 3, 1, 2).double().unfold(2, 6, 3).unfold(3, 6, 3) for image in (prediction, target))
    assert x.shape[2:4] == (5, 7)
    mx, my = x.mean(dim=(4, 5)), y.mean(dim=(4, 5))
    vx, vy = x.var(dim=(4, 5), correction=0), y.var(dim=(4, 5), correction=0)
    covariance = ((x - mx[..., None, None]) * (y - my[..., None, None])).mean(dim=(4, 5))
    similarity = (2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(structure_loss(prediction, target, window=6)) == pytest.approx(float(1 - similarity.mean()), abs=1e-4)


def test_unknown_pixels_have_no_error_and_no_gradient():
    outputs = {name: torch.rand(3, 2, 2, channels, requires_grad=True) for name, channels in
               (("rgb", 3), ("accumulation", 1))}  # fmt: skip
    known = torch.ones(3, 2, 2, 1, dtype=torch.bool)
    known[1, 0] = known[2] = False
    batch = {"image": torch.rand(3, 2, 2, 3), "alpha": torch.rand(2, 2, 2, 1), "depth": torch.zeros(2, 2, 2, 1)}
    assert ignore_unknown(outputs, batch)[1] is batch
    own, found = ignore_unknown(outputs, {**batch, "known": known})
    assert all(torch.equal(own[name], outputs[name]) for name in outputs)
    assert torch.equal(found["image"].where(known, 0), batch["image"].where(known, 0))
    assert torch.equal(found["alpha"].where(known[:2], 0), batch["alpha"].where(known[:2], 0))
    assert torch.equal(found["depth"], batch["depth"])
    loss = rgb_loss(own["rgb"], found["image"]) + alpha_loss(own["accumulation"][:2], found["alpha"])
    by_hand = ((outputs["rgb"] - batch["image"]) ** 2 * known).sum() / 36
    by_hand = by_hand + ((outputs["accumulation"][:2] - batch["alpha"]) ** 2 * known[:2]).sum() / 8
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    assert torch.equal(outputs["rgb"].grad.abs().amax(dim=-1, keepdim=True) > 0, known)
    assert torch.equal(outputs["accumulation"].grad != 0, known & (torch.arange(3) < 2).view(3, 1, 1, 1))


def test_a_student_of_colours_alone_can_have_unknown_pixels():
    rgb = torch.rand(1, 2, 2, 3)
    batch = {"image": torch.zeros(1, 2, 2, 3), "alpha": torch.zeros(1, 2, 2, 1)}
    batch["known"] = torch.zeros(1, 2, 2, 1, dtype=torch.bool)
    _, found = ignore_unknown({"rgb": rgb}, batch)
    assert torch.equal(found["image"], rgb) and torch.equal(found["alpha"], batch["alpha"])


def test_unknown_pixels_are_not_moved_by_the_structure_of_known_ones():
    """A window holds both: without care, the gradient of its mean and variance reaches all its pixels."""
    random = torch.Generator().manual_seed(0)
    rgb = torch.rand(1, 8, 8, 3, generator=random).requires_grad_()
    known = torch.ones(1, 8, 8, 1, dtype=torch.bool)
    known[:, :, 4:] = False
    batch = {"image": torch.rand(1, 8, 8, 3, generator=random), "known": known}
    outputs, found = ignore_unknown({"rgb": rgb}, batch)
    structure_loss(outputs["rgb"], found["image"]).backward()
    assert torch.equal(rgb.grad.abs().amax(dim=-1, keepdim=True) > 0, known)


def test_a_cell_that_is_not_known_may_meet_a_surface():
    """Three empty cells of 2 x 2 pixels, of which the second is not known and the third is known in part."""
    empty, known = torch.zeros(1, 2, 6, 1), torch.ones(1, 2, 6, 1, dtype=torch.bool)
    known[:, :, 2:4], known[:, 0, 4] = False, False
    prediction = torch.full((1, 1, 3, 1), 0.4, requires_grad=True)
    surface_loss(prediction, empty, empty, known).backward()
    assert prediction.grad.flatten().tolist() == pytest.approx([-0.1 * 2 * 0.6 / 3, 0.0, 0.0])
