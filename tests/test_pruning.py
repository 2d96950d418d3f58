"""Pruning: removed channels by hand, importance against finite differences, and rounds of the real trainer."""

import copy
import json
import shutil

import pytest
import torch
from builders import StubTeacher
from mobiler2l_ns.method_configs import mobiler2l_small
from torch import nn

from mobiler2l_ns.checkpoints import load_model
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.pruning.channels import (
    group_sizes,
    macs_a_ray,
    network_layers,
    num_parameters,
    remove_channels,
)
from mobiler2l_ns.pruning.command import PruneMobileR2L
from mobiler2l_ns.pruning.importance import TaylorScores, batch_norm_scores, magnitude_scores
from mobiler2l_ns.pruning.masks import HeldZeros, nonzero_fraction, zero_smallest_weights
from mobiler2l_ns.pruning.rounds import RoundOptions, Targets, begin_schedule
from mobiler2l_ns.pruning.selection import choose_channels
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.student.network import MobileR2LNetwork, NetworkConfig, count_macs, count_parameters
from mobiler2l_ns.teacher.adoption import Adoption
from mobiler2l_ns.teacher.frozen import TeacherConfig

SHAPES = {
    "x4": {"sr_widths": (8, 4), "sr_strides": (2, 2)},
    "x6, one block": {"sr_widths": (8, 6), "sr_strides": (2, 3), "sr_blocks": 1},
    "no stages": {"sr_widths": (), "sr_strides": ()},
    "pruned": {"sr_widths": (8, 4), "sr_strides": (2, 2), "inner_widths": (8, 0, 4), "sr_inner_widths": (0, 3, 4, 0)},
    "batch norm": {"sr_widths": (8, 4), "sr_strides": (2, 2), "batch_norm": True},
}
GROUPS = ["width", "block 0", "block 1", "block 2", "stage 1", "block 4", "block 5", "stage 2", "block 7", "block 8"]


def make_network(**options) -> MobileR2LNetwork:
    torch.manual_seed(0)
    network = MobileR2LNetwork(12, NetworkConfig(**{"depth": 8, "width": 12, **SHAPES["x4"], **options}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def codes():
    return torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(1))


# -- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_layers_are_all_of_the_work(options):
    network = make_network(**options)
    layers = network_layers(network)
    assert macs_a_ray(layers, group_sizes(layers)) * 15 == count_macs(network, 3, 5)
    norms = sum(count_parameters(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert num_parameters(layers, group_sizes(layers)) + norms == count_parameters(network)


def test_groups_by_name():
    """Blocks 3 and 6 would be the transposed convolutions."""
    assert group_sizes(network_layers(make_network())) == dict(zip(GROUPS, [12, 12, 12, 12, 8, 8, 8, 4, 4, 4]))


def everything(network) -> dict:
    return {name: torch.arange(size) for name, size in group_sizes(network_layers(network)).items()}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_all_channels_kept_is_the_same_network(options, codes):
    network = make_network(**options)
    same = remove_channels(network, everything(network))
    torch.testing.assert_close(same(codes), network(codes), atol=5e-5, rtol=0)  # in another order in memory
    assert same.head[0].weight is not network.head[0].weight


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("name", GROUPS)
def test_channels_that_nothing_reads_change_nothing(name, batch_norm, codes):
    network = make_network(batch_norm=batch_norm)
    kept = everything(network)
    kept[name] = torch.tensor([0, 2, 3])
    dead = [k for k in range(group_sizes(network_layers(network))[name]) if k not in (0, 2, 3)]
    with torch.no_grad():
        for layer in network_layers(network):
            if layer.source == name:
                layer.by_input(layer.convolution.weight)[dead] = 0.0  # a view of the weight, or of its transpose
    smaller = remove_channels(network, kept)
    assert group_sizes(network_layers(smaller))[name] == 3
    torch.testing.assert_close(smaller(codes), network(codes), atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in GROUPS if "block" in name])
def test_a_block_without_channels_is_left_out(name, codes):
    network = make_network()
    kept = {**everything(network), name: torch.arange(0)}
    with torch.no_grad():  # its second convolution adds a bias, which goes with the block
        next(layer.convolution for layer in network_layers(network) if layer.source == name).bias.zero_()
        next(layer.convolution for layer in network_layers(network) if layer.source == name).weight.zero_()
    smaller = remove_channels(network, kept)
    assert len(network_layers(smaller)) == len(network_layers(network)) - 2
    torch.testing.assert_close(smaller(codes), network(codes), atol=5e-5, rtol=0)
    again = remove_channels(smaller, everything(smaller))  # a pruned network can be pruned
    assert again.config == smaller.config
    torch.testing.assert_close(again(codes), smaller(codes), atol=5e-5, rtol=0)


# -- importance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROUPS)
def test_taylor_is_the_derivative_of_a_gate(name, codes):
    """The squared derivative of the loss by a factor at all weights that read a channel, here of channel 1."""
    network = make_network().double()
    target = torch.rand(2, 3, 12, 20, dtype=torch.double)
    scores = TaylorScores(network)
    for batch in codes.double().split(1):
        (network(batch) - target[:1]).square().mean().backward()
        scores.add()
    expected = 0.0
    for batch in codes.double().split(1):
        losses = []
        for gate in (1 - 1e-5, 1 + 1e-5):
            gated = make_network().double()
            with torch.no_grad():
                for layer in network_layers(gated):
                    if layer.source == name:
                        layer.by_input(layer.convolution.weight)[1] *= gate
                losses.append((gated(batch) - target[:1]).square().mean())
        expected += float((losses[1] - losses[0]) / 2e-5) ** 2
    assert float(scores.scores[name][1]) == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert all(parameter.grad is None for parameter in network.parameters() if parameter.ndim > 1)


def test_magnitude_by_hand():
    network = make_network(depth=4)
    scores = magnitude_scores(network)
    assert set(scores) == set(group_sizes(network_layers(network)))
    norms = network.body[0].conv1.weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(scores["block 0"], norms / norms.mean())
    writers = network.super_resolution[0].weight.abs().sum((0, 2, 3))  # transposed: outputs are the second axis
    for block in network.super_resolution[1:3]:
        writers = writers + block.conv2.weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(scores["stage 1"], writers / writers.mean())


def test_batch_norm_by_hand():
    network = make_network(depth=4, batch_norm=True)
    scores = batch_norm_scores(network)
    torch.testing.assert_close(scores["block 0"], network.body[0].norm1.weight.abs())
    torch.testing.assert_close(scores["width"], network.body[0].norm2.weight.abs())
    assert not batch_norm_scores(make_network())


# -- choice -----------------------------------------------------------------------------------------------------------


def choose(network, scores, most, multiple=4):
    layers = network_layers(network)
    return choose_channels(layers, scores, lambda sizes: macs_a_ray(layers, sizes) <= most, multiple)


def test_the_least_important_channels_for_their_work_go():
    """All groups are worth much but one block, in which channels 1, 5, 6 and 9 are worth least."""
    network = make_network()
    layers = network_layers(network)
    sizes = group_sizes(layers)
    scores = {name: torch.full((size,), 1e3) for name, size in sizes.items()}
    scores["block 1"] = torch.ones(12)
    scores["block 1"][[1, 5, 6, 9]] = 0.1
    kept = choose(network, scores, macs_a_ray(layers, sizes) - 1)
    assert kept["block 1"].tolist() == [0, 2, 3, 4, 7, 8, 10, 11]
    assert all(len(numbers) == sizes[name] for name, numbers in kept.items() if name != "block 1")
    kept = choose(network, scores, macs_a_ray(layers, {**sizes, "block 1": 0}))
    assert len(kept["block 1"]) == 0


def test_a_cheap_channel_stays_where_an_expensive_one_goes():
    """Equal scores: a channel of the first stage takes more work than any other.

    Its transposed convolutions have 16 weights for each pair of channels: 12 x 16 in, 4 x 16 x 4 pixels out, and 4 x 8
    x 4 pixels in its blocks make 576. A channel of W takes 12 in, 6 x 12 in the body and 8 x 16 out, 212.
    """
    network = make_network()
    layers = network_layers(network)
    sizes = group_sizes(layers)
    kept = choose(network, {name: torch.ones(size) for name, size in sizes.items()}, macs_a_ray(layers, sizes) - 1)
    assert len(kept["stage 1"]) == 4 and sum(map(len, kept.values())) == sum(sizes.values()) - 4


def test_sizes_are_multiples_and_small_enough():
    network = make_network(width=13, inner_widths=(13, 7, 12))
    layers = network_layers(network)
    sizes = group_sizes(layers)
    generator = torch.Generator().manual_seed(2)
    scores = {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
    kept = {name: len(numbers) for name, numbers in choose(network, scores, 0.3 * macs_a_ray(layers, sizes)).items()}
    assert macs_a_ray(layers, kept) <= 0.3 * macs_a_ray(layers, sizes)
    assert all(count % 4 == 0 or count == sizes[name] for name, count in kept.items())
    assert all(kept[name] > 0 for name in ("width", "stage 1", "stage 2"))


def test_a_network_cannot_become_arbitrarily_small():
    network = make_network()
    with pytest.raises(UserError, match="no network with multiples of 4 channels is as small as that"):
        choose(network, magnitude_scores(network), 10)


# -- zeros ------------------------------------------------------------------------------------------------------------


def test_the_smallest_weights_become_zero_and_stay_zero():
    network = make_network()
    before = torch.cat([layer.convolution.weight.flatten() for layer in network_layers(network)]).abs()
    zero_smallest_weights(network, 0.3)
    assert nonzero_fraction(network) == pytest.approx(0.7, abs=1e-3)
    left = torch.cat([layer.convolution.weight.flatten() for layer in network_layers(network)]).abs()
    assert left[left > 0].min() >= before.quantile(0.299)
    zeros = HeldZeros(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    zeros.apply()
    assert nonzero_fraction(network) == pytest.approx(0.7, abs=1e-3)
    zero_smallest_weights(network, 0.3)  # of those that are left
    assert nonzero_fraction(network) == pytest.approx(0.49, abs=1e-3)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def prune(ball_run, tmp_path, monkeypatch):
    """Runs the command on a copy of a trained run, with the analytic ball as its teacher; returns the run's folder."""
    monkeypatch.setattr(TeacherConfig, "setup", lambda self, device: StubTeacher())
    monkeypatch.setattr(TeacherConfig, "find", lambda self, data, dataparser, device: Adoption(dataparser, False))
    folder = tmp_path / "outputs" / "ball" / "mobiler2l-small" / "run"
    shutil.copytree(ball_run.parent, folder)

    def go(**options):
        defaults = {"rounds": 2, "finetune_steps": 2, "scoring_batches": 2, "multiple": 4}
        PruneMobileR2L(folder, **{**defaults, **options}).main()
        return folder

    go.folder = folder
    return go


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rounds_are_runs_of_their_own(prune, capsys):
    before = contents(prune.folder)
    prune(fraction=0.3)
    assert contents(prune.folder) == before
    large, _ = load_model(prune.folder / "config.yml", "cpu")
    works = [count_macs(large.network, 4, 4)]
    for number in (1, 2):
        folder = prune.folder.with_name(f"run-pruned-{number}")
        model, step = load_model(folder / "config.yml", "cpu")
        works.append(count_macs(model.network, 4, 4))
        assert model.sampler.near == large.sampler.near and model.sampler.far == large.sampler.far
        assert read_config(folder / "config.yml").pipeline.datamanager.near_far == (
            large.sampler.near,
            large.sampler.far,
        )
        record = json.loads((folder / "pruning.json").read_text())
        assert step == 1 and record["after"]["gmac"] == pytest.approx(works[-1] / 1e9, abs=1e-4)
        assert 5 < record["before"]["psnr"] < 30 and 5 < record["after"]["psnr"] < 30
        assert (folder / "pruning.png").stat().st_size > 5000 and (folder / "dataparser_transforms.json").is_file()
    assert works[1] <= 0.7 * works[0] and 0.3 * works[0] < works[2] <= 0.7 * works[1]
    printed = capsys.readouterr().out
    assert "Round 2 of 2" in printed and "on held-out photos" in printed
    # The same command does nothing again, and one with other options is refused.
    after = {number: contents(prune.folder.with_name(f"run-pruned-{number}")) for number in (1, 2)}
    prune(fraction=0.3)
    for number, files in after.items():
        found = contents(prune.folder.with_name(f"run-pruned-{number}"))
        assert all(found[path] == files[path] for path in files if path.suffix in (".ckpt", ".json", ".yml"))
    with pytest.raises(UserError, match="run-pruned-1 was pruned with other options"):
        prune(fraction=0.4)


def test_an_interrupted_round_goes_on(prune, monkeypatch):
    """The second round ends after its third step, which was saved."""
    from mobiler2l_ns.trainer import DistillationTrainer

    saved, steps = [], []
    save, train = DistillationTrainer.save_checkpoint, DistillationTrainer.train_iteration

    def interrupt(self, step):
        if "pruned-2" in str(self.base_dir) and step == 3 and not saved:
            save(self, step - 1)
            saved.append(step)
            raise KeyboardInterrupt
        steps.append(step)
        return train(self, step)

    monkeypatch.setattr(DistillationTrainer, "train_iteration", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune(finetune_steps=6)
    steps.clear()
    prune(finetune_steps=6)
    assert steps == [3, 4, 5]
    _, step = load_model(prune.folder.with_name("run-pruned-2") / "config.yml", "cpu")
    assert step == 5


def test_a_longer_last_round(prune):
    """The first round begins the last one's schedule, and neither fine-tunes nor exports."""
    prune(finetune_steps=4, last_steps=12)
    first, last = (read_config(prune.folder.with_name(f"run-pruned-{number}") / "config.yml") for number in (1, 2))
    assert (first.max_num_iterations, last.max_num_iterations) == (4, 12)
    schedules = [{group["scheduler"].max_steps for group in run.optimizers.values()} for run in (first, last)]
    assert schedules == [{12}, {None}]
    with pytest.raises(UserError, match="run-pruned-1 was pruned with other options"):
        prune(finetune_steps=4)


def test_a_round_that_others_follow_is_not_finished():
    config = copy.deepcopy(mobiler2l_small.config)
    options = RoundOptions(0.3, Targets(), False, "taylor", 8, 4, 0.5, steps=50, last_steps=400)
    begin_schedule(config, options)
    assert (config.max_num_iterations, config.pipeline.finetuning.steps) == (50, 0)
    assert not config.pipeline.model.export_when_done
    assert {group["scheduler"].max_steps for group in config.optimizers.values()} == {400}


def test_one_shot_removes_as_much_at_once(prune):
    prune(fraction=0.2, schedule="one-shot")
    assert not prune.folder.with_name("run-pruned-2").exists()
    saved = json.loads((prune.folder.with_name("run-pruned-1") / "pruning.json").read_text())
    assert saved["options"]["steps"] == 4 and saved["options"]["fraction"] == pytest.approx(0.36)


def test_it_stops_at_a_target(prune, capsys):
    large, _ = load_model(prune.folder / "config.yml", "cpu")
    whole = count_parameters(large.network) * 2e-6
    prune(fraction=0.9, rounds=5, finetune_steps=2, last_steps=4, target_mb=0.6 * whole)
    # A round that meets the target is the last one.
    assert read_config(prune.folder.with_name("run-pruned-1") / "config.yml").max_num_iterations == 4
    model, _ = load_model(prune.folder.with_name("run-pruned-1") / "config.yml", "cpu")
    assert 0.3 * whole < count_parameters(model.network) * 2e-6 <= 0.6 * whole
    assert not prune.folder.with_name("run-pruned-2").exists()
    assert "The targets are met after 1 of 5 rounds." in capsys.readouterr().out


def test_unstructured_zeros_are_held(prune):
    prune(unstructured=True, fraction=0.5)
    shares = []
    for number in (1, 2):
        model, _ = load_model(prune.folder.with_name(f"run-pruned-{number}") / "config.yml", "cpu")
        shares.append(nonzero_fraction(model.network))
    assert shares == pytest.approx([0.5, 0.25], abs=2e-3)


BAD = {
    "a fraction of 1": ({"fraction": 1.0}, "--fraction 1.0 cannot be removed: pass a number between 0 and 1"),
    "a negative fraction": ({"fraction": -0.1}, "--fraction -0.1 cannot"),
    "no rounds": ({"rounds": 0}, "--rounds 0 must be larger than 0"),
    "no steps": ({"finetune_steps": 0}, "--finetune-steps 0 must be larger than 0"),
    "no last steps": ({"last_steps": 0}, "--last-steps 0 must be larger than 0"),
    "a path as name": ({"name": "a/b"}, "--name 'a/b' cannot be a part of a folder's name"),
    "no batch norm": ({"criterion": "bn"}, "has a student without batch norm: pass --criterion taylor"),
    "zeros by taylor": ({"unstructured": True, "criterion": "taylor"}, "--criterion taylor is for channels"),
    "zeros with a target": ({"unstructured": True, "target_mb": 1.0}, "zeros make no file smaller"),
    "a target that is met": ({"target_gmac": 100.0}, "GMAC and .* MB in fp16 already: pass a smaller target"),
    "an impossible target": ({"target_gmac": 1e-9, "fraction": 0.99}, "no network with multiples of 4"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_options_change_nothing(prune, options, message):
    before = contents(prune.folder)
    with pytest.raises(UserError, match=message):
        prune(**options)
    assert contents(prune.folder) == before and not prune.folder.with_name("run-pruned-1").exists()


def test_a_teacher_that_is_gone(prune, monkeypatch, ball_run):
    monkeypatch.undo()
    with pytest.raises(UserError, match="teacher"):
        PruneMobileR2L(prune.folder, finetune_steps=2).main()
    assert not prune.folder.with_name("run-pruned-1").exists()


def test_a_folder_that_is_no_round(prune):
    folder = prune.folder.with_name("run-pruned-1")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="run-pruned-1 is no round of pruning: pass another --name"):
        prune()
    assert contents(folder) == {folder / "notes.txt": b"mine"}
