"""One round of pruning: an ordinary run of the student, whose network becomes smaller before the first step."""

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, cast

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from torch import Tensor

from mobiler2l_ns.checkpoints import checkpoint_paths
from mobiler2l_ns.datamanager import DistillationDataManagerConfig
from mobiler2l_ns.model import MobileR2LModel, MobileR2LModelConfig
from mobiler2l_ns.pipeline import DistillationPipeline, DistillationPipelineConfig
from mobiler2l_ns.pruning.channels import (
    Layer,
    group_sizes,
    macs_a_ray,
    network_layers,
    num_parameters,
    remove_channels,
)
from mobiler2l_ns.pruning.importance import Criterion, TaylorScores, batch_norm_scores, magnitude_scores
from mobiler2l_ns.pruning.masks import HeldZeros, zero_smallest_weights
from mobiler2l_ns.pruning.report import Record, load_record, measure
from mobiler2l_ns.pruning.selection import choose_channels
from mobiler2l_ns.run_config import read_config
from mobiler2l_ns.student.network import MobileR2LNetwork
from mobiler2l_ns.trainer import DistillationTrainer, DistillationTrainerConfig, forget_writers, go_on
from mobiler2l_ns.training.random_state import seed_all

WITHOUT_VIEWER = {
    "viewer": "tensorboard",
    "viewer_legacy": "tensorboard",
    "viewer+tensorboard": "tensorboard",
    "viewer+wandb": "wandb",
    "viewer+comet": "comet",
}


@dataclass
class Targets:
    """Sizes at which pruning stops; None: no such target."""

    macs_a_ray: Optional[float] = None
    """Multiply-accumulate operations of the network a ray."""
    parameters: Optional[float] = None
    """Of the network."""

    def are_met(self, layers: List[Layer], sizes: Dict[str, int]) -> bool:
        """Whether there are targets and a network whose groups have these sizes meets all."""
        found = (self.macs_a_ray, macs_a_ray(layers, sizes)), (self.parameters, num_parameters(layers, sizes))
        wanted = [value <= target for target, value in found if target is not None]
        return bool(wanted) and all(wanted)

    def are_met_by(self, network: MobileR2LNetwork) -> bool:
        """The same for a network as it is."""
        layers = network_layers(network)
        return self.are_met(layers, group_sizes(layers))


@dataclass
class RoundOptions:
    """What a round removes, and how."""

    fraction: float
    """Fraction of the network's work, or of its weights in unstructured pruning."""
    targets: Targets
    unstructured: bool
    criterion: Criterion
    multiple: int
    scoring_batches: int
    rate: float
    """Learning rates of the round, as a fraction of the recipe's."""
    steps: int
    """Training steps of the round."""
    last_steps: Optional[int] = None
    """Training steps of the last round; None: as the others."""


class PruningTrainer(DistillationTrainer):
    """Changes the student when it is built and has no optimizers yet.

    Args:
        config: The round's run.
        change: Changes the pipeline's student.
        rate: Learning rates, as a fraction of the config's.
    """

    def __init__(self, config: DistillationTrainerConfig, change: Callable[[DistillationPipeline], None], rate: float):
        super().__init__(config)
        self.change, self.rate = change, rate

    def setup_optimizers(self) -> Optimizers:
        """nerfstudio's, of the changed student. config.yml keeps the recipe's own rates."""
        self.change(cast(DistillationPipeline, self.pipeline))
        recipe = self.config.optimizers
        self.config.optimizers = {
            name: {**group, "optimizer": replace(group["optimizer"], lr=self.rate * group["optimizer"].lr)}
            for name, group in recipe.items()
        }
        try:
            return super().setup_optimizers()
        finally:
            self.config.optimizers = recipe


def finish_round(
    recipe: DistillationTrainerConfig, student: MobileR2LModel, folder: Path, options: RoundOptions, is_last: bool
) -> Record:
    """Runs a round, or what is left of it.

    Args:
        recipe: The config of the first student.
        student: The student that is pruned.
        folder: The round's run folder.
        options: What is removed, and how long it trains.
        is_last: Whether no round follows, whatever the targets say.

    Raises:
        UserError: The folder is of another round.
    """
    record = load_record(folder, asdict(options))
    if record.after is None:
        config, weights = resumed_config(folder), None
        if config is None:
            config, weights = round_config(recipe, student, folder, options), student.state_dict()
        run_round(config, weights, options, is_last, record)
    return record


def run_round(
    config: DistillationTrainerConfig, weights: Optional[Dict[str, Tensor]], options: RoundOptions, is_last: bool,
    record: Record,
) -> None:  # fmt: skip
    """Prunes a student and distils it further, in a run of its own.

    Args:
        config: The round's run; its network is the larger one, and becomes the smaller one.
        weights: The larger student's state dict. None: the run was interrupted after its first checkpoint, and goes on.
        options: What is removed, and how long it trains.
        is_last: Whether no round follows, whatever the targets say.
        record: Gets the figures before and after the round, and is saved in its folder.
    """

    def change(pipeline: DistillationPipeline) -> None:
        if weights is not None:
            pipeline.model.load_state_dict(weights)
            record.before = measure(pipeline.model, held_out_psnr(pipeline))
            prune_student(pipeline, options)
            if not is_last and not options.targets.are_met_by(pipeline.model.network):
                begin_schedule(config, options)
            record.save(config.get_base_dir())

    seed_all(config.machine.seed)
    trainer = PruningTrainer(config, change, options.rate)
    trainer.setup("val")
    pipeline = cast(DistillationPipeline, trainer.pipeline)
    if options.unstructured:
        zeros = HeldZeros(pipeline.model.network)
        after_step = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], lambda step: zeros.apply())
        trainer.callbacks.insert(0, after_step)  # before fine-tuning copies the best weights
    trainer.train()
    forget_writers()
    record.after = measure(pipeline.model, held_out_psnr(pipeline))
    record.save(config.get_base_dir())


def prune_student(pipeline: DistillationPipeline, options: RoundOptions) -> None:
    """Makes the pipeline's student smaller."""
    model = pipeline.model
    network, layers = model.network, network_layers(model.network)
    if options.unstructured:
        zero_smallest_weights(network, options.fraction)
        return
    most_macs = (1 - options.fraction) * macs_a_ray(layers, group_sizes(layers))

    def is_small(sizes: Dict[str, int]) -> bool:
        return macs_a_ray(layers, sizes) <= most_macs or options.targets.are_met(layers, sizes)

    kept = choose_channels(layers, score_channels(pipeline, options), is_small, options.multiple)
    model.network = model.renderer.network = remove_channels(network, kept)
    model.config.network = model.network.config


def score_channels(pipeline: DistillationPipeline, options: RoundOptions) -> Dict[str, Tensor]:
    """Importance of the channels of each group."""
    network = pipeline.model.network
    if options.criterion == "magnitude":
        return magnitude_scores(network)
    if options.criterion == "bn":
        return batch_norm_scores(network)
    pipeline.train()
    scores = TaylorScores(network)
    for batch in range(options.scoring_batches):
        _, losses, _ = pipeline.get_train_loss_dict(batch)
        torch.stack(list(losses.values())).sum().backward()
        scores.add()
    pipeline.model.zero_grad(set_to_none=True)
    return scores.scores


def round_config(
    recipe: DistillationTrainerConfig, student: MobileR2LModel, folder: Path, options: RoundOptions
) -> DistillationTrainerConfig:
    """The config of the last round's run.

    Args:
        recipe: The config of the first student; it stays as it is.
        student: The student that is pruned.
        folder: The round's run folder, OUTPUTS/EXPERIMENT/METHOD/NAME.
        options: How long it trains.
    """
    config = copy.deepcopy(recipe)
    model, datamanager = config.pipeline.model, config.pipeline.datamanager
    assert isinstance(model, MobileR2LModelConfig) and isinstance(datamanager, DistillationDataManagerConfig)
    model.network = student.network.config
    # Measured again, the planes would differ a little, and with them what the student's depths mean.
    near, far = float(student.sampler.near), float(student.sampler.far)
    datamanager.near_far = (near, far)
    config.output_dir, config.experiment_name, config.timestamp = folder.parents[2], folder.parents[1].name, folder.name
    config.load_dir = config.load_step = config.load_config = config.load_checkpoint = None
    config.max_num_iterations = options.last_steps or options.steps
    # With a viewer, nerfstudio's trainer would not end before the page is closed.
    config.vis = cast(Any, WITHOUT_VIEWER.get(config.vis, config.vis))
    return config


def begin_schedule(config: DistillationTrainerConfig, options: RoundOptions) -> None:
    """Changes the config of a round that others follow: no export, and only the begin of a longer last round."""
    pipeline = cast(DistillationPipelineConfig, config.pipeline)
    pipeline.model.export_when_done = False
    if options.last_steps is not None:
        pipeline.finetuning.steps = 0
        config.max_num_iterations = options.steps
        for group in config.optimizers.values():
            group["scheduler"].max_steps = options.last_steps


def resumed_config(folder: Path) -> Optional[DistillationTrainerConfig]:
    """The config with which an interrupted round goes on from its last checkpoint; None if it has no checkpoint."""
    if not (folder / "config.yml").is_file():
        return None
    config = cast(DistillationTrainerConfig, read_config(folder / "config.yml"))
    saved = checkpoint_paths(folder / "config.yml", config)
    if not saved:
        return None
    go_on(config, saved[-1])
    return config


def held_out_psnr(pipeline: DistillationPipeline) -> float:
    """Mean PSNR in dB of a few held-out photos."""
    pipeline.model.eval()
    return pipeline.mean_psnr(pipeline.datamanager.eval_photos)
