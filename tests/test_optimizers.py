"""Muon in numbers worked by hand, and against torch's own Muon."""

import pytest
import torch

from mobiler2l_ns.training.optimizers import AdamWOptimizerConfig, Muon, MuonOptimizerConfig, orthogonalise


def with_singular_values(rows: int, columns: int, count: int = 3):
    """Matrices with known singular vectors and values from 0.1 to 1."""
    rank = min(rows, columns)
    left, _ = torch.linalg.qr(torch.randn(count, rows, rank))
    right, _ = torch.linalg.qr(torch.randn(count, columns, rank))
    values = torch.linspace(0.1, 1, rank)
    return left, right, left * values @ right.transpose(1, 2)


@pytest.mark.parametrize("rows, columns", [(8, 8), (6, 20), (20, 6), (1, 5), (5, 1)])
def test_orthogonalise_keeps_vectors_and_levels_values(rows, columns):
    torch.manual_seed(0)
    left, right, matrices = with_singular_values(rows, columns)
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    core = left.transpose(1, 2) @ result @ right  # diagonal, in the known singular vectors
    values = core.diagonal(dim1=1, dim2=2)
    assert 0.6 < values.min() and values.max() < 1.3
    torch.testing.assert_close(core, torch.diag_embed(values), atol=1e-3, rtol=0)
    torch.testing.assert_close(left @ core @ right.transpose(1, 2), result, atol=1e-3, rtol=0)


def test_orthogonalise_by_hand():
    """Five quintic steps on the 1 x 1 matrix [1]: x -> 3.4445 x - 4.775 x^3 + 2.0315 x^5."""
    x = 1.0
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert float(orthogonalise(torch.tensor([[[-7.0]]]))) == pytest.approx(-x, abs=1e-4)


def test_orthogonalise_does_not_depend_on_the_scale_and_survives_zero():
    matrices = torch.randn(2, 5, 7)
    torch.testing.assert_close(orthogonalise(matrices * 1000), orthogonalise(matrices), atol=1e-4, rtol=0)
    assert not orthogonalise(torch.zeros(1, 5, 7)).any()


def test_bf16_is_precise_enough():
    """Its error is as small as the error that five steps leave."""
    torch.manual_seed(0)
    left, right, matrices = with_singular_values(24, 40)
    result = orthogonalise(matrices, dtype=torch.bfloat16)
    assert result.dtype == torch.float32
    core = left.transpose(1, 2) @ result @ right
    values = core.diagonal(dim1=1, dim2=2)
    assert 0.6 < values.min() and values.max() < 1.3
    assert (core - torch.diag_embed(values)).abs().max() < 0.05


def one_step(weight: torch.Tensor, gradient: torch.Tensor, **options) -> torch.Tensor:
    p = torch.nn.Parameter(weight.clone())
    p.grad = gradient.clone()
    Muon([p], **options).step()
    return p.detach()


@pytest.mark.parametrize("shape, factor", [((6, 6), 1.0), ((3, 12), 1.0), ((12, 3), 2.0)])
def test_first_step_by_hand(shape, factor):
    """Momentum only scales the first gradient: the step is lr times its orthogonal factor, sqrt(12/3) more if tall."""
    torch.manual_seed(0)
    weight, gradient = torch.randn(shape), torch.randn(shape)
    expected = weight - 0.1 * factor * orthogonalise(gradient[None])[0]
    torch.testing.assert_close(one_step(weight, gradient, lr=0.1), expected, atol=1e-4, rtol=0)


def test_second_step_follows_nesterov_momentum():
    """With decay 0.9: m1 = 0.1 g1, m2 = 0.09 g1 + 0.1 g2, and the direction is 0.1 g2 + 0.9 m2."""
    torch.manual_seed(0)
    g1, g2 = torch.randn(4, 4), torch.randn(4, 4)
    p = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = Muon([p], lr=1.0, momentum=0.9)
    p.grad = g1.clone()
    optimizer.step()
    first = p.detach().clone()
    p.grad = g2.clone()
    optimizer.step()
    direction = 0.1 * g2 + 0.9 * (0.09 * g1 + 0.1 * g2)
    torch.testing.assert_close(first - p, orthogonalise(direction[None])[0], atol=1e-3, rtol=0)


def test_weight_decay_is_decoupled():
    weight, gradient = torch.randn(4, 4), torch.randn(4, 4)
    plain, decayed = one_step(weight, gradient, lr=0.1), one_step(weight, gradient, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(plain - decayed, 0.05 * weight)  # lr * decay * weight


def test_a_1x1_convolution_is_a_matrix_and_shapes_may_mix():
    torch.manual_seed(0)
    weights = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6)]
    gradients = [torch.randn_like(w) for w in weights]
    apart = [one_step(w, g, lr=0.1) for w, g in zip(weights, gradients)]
    together = [torch.nn.Parameter(w.clone()) for w in weights]
    together[1] = torch.nn.Parameter(weights[1][:, :, None, None].clone())
    unused = torch.nn.Parameter(torch.ones(2, 2))
    for p, g in zip(together, gradients):
        p.grad = g.view_as(p).clone()
    Muon([*together, unused], lr=0.1).step()
    for p, expected in zip(together, apart):
        torch.testing.assert_close(p.detach().view_as(expected), expected, atol=1e-5, rtol=0)
    assert (unused == 1).all()


def test_channels_last_weights_take_the_same_step():
    """The student's network keeps its weights channels-last."""
    weight, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    expected = one_step(weight, gradient, lr=0.1)
    last = torch.nn.Parameter(weight.clone().to(memory_format=torch.channels_last))
    last.grad = gradient.clone().to(memory_format=torch.channels_last)
    Muon([last], lr=0.1).step()
    torch.testing.assert_close(last.detach().contiguous(), expected, atol=1e-5, rtol=0)


def test_muon_lowers_a_quadratic():
    torch.manual_seed(0)
    target, p = torch.randn(8, 8), torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([p], lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (p - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.02 * losses[0]


def test_configs_build_their_optimizers():
    p = torch.nn.Parameter(torch.ones(2, 2))
    muon = MuonOptimizerConfig(lr=0.3, momentum=0.8, weight_decay=0.1).setup([p])
    assert isinstance(muon, Muon) and muon.defaults == {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1}
    adamw = AdamWOptimizerConfig(lr=0.2, weight_decay=0.4).setup([p])
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.2, 0.4)


# -- torch's Muon ---------------------------------------------------------------------------------------------------

needs_torch_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no torch.optim.Muon")
SHAPES = [(24, 24), (16, 64), (64, 16), (1, 32), (32, 1), (256, 312)]


def total_updates(shape, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """What our Muon and torch's add to one weight in ten steps with the same gradients, weight decay included."""
    torch.manual_seed(0)
    weight, shared = torch.randn(shape), {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    weights = [torch.nn.Parameter(weight.clone()) for _ in range(2)]
    optimizers = [Muon([weights[0]], **shared), torch.optim.Muon([weights[1]], **shared, **options)]
    for _ in range(10):
        gradient = torch.randn(shape)
        for p, optimizer in zip(weights, optimizers):
            p.grad = gradient.clone()
            optimizer.step()
    ours, theirs = (p.detach() - weight for p in weights)
    return ours, theirs


@needs_torch_muon
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_agree_with_torchs_muon(shape):
    """Our step size is torch's "original": lr * sqrt(max(1, rows / columns)).

    torch iterates in bfloat16, which rounds each operation to 2^-8 = 0.4 percent. Measured: 0.5 to 1 percent of the
    sum of ten steps.
    """
    ours, theirs = total_updates(shape, adjust_lr_fn="original", nesterov=True, ns_steps=5)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@needs_torch_muon
@pytest.mark.parametrize(
    "options", [{"nesterov": False}, {"ns_steps": 4}, {"adjust_lr_fn": "match_rms_adamw"}], ids=str
)
def test_other_options_of_torchs_muon_differ(options):
    """The tolerance above distinguishes other conventions."""
    ours, theirs = total_updates((64, 16), **options)
    assert (ours - theirs).norm() > 0.05 * theirs.norm()
