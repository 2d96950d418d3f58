"""The command ``ns-prune-mobiler2l``: makes a trained student smaller, and distils it further after each round."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Literal, Optional, cast

import tyro

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import load_student
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.pruning.importance import Criterion
from mobiler2l_ns.pruning.report import measure, print_rounds, write_curves
from mobiler2l_ns.pruning.rounds import RoundOptions, Targets, finish_round
from mobiler2l_ns.student.network import count_macs, count_parameters
from mobiler2l_ns.trainer import DistillationTrainerConfig
from mobiler2l_ns.training.progress import duration, log_line


@dataclass
class PruneMobileR2L:
    """Prunes a trained student in rounds. After each it is distilled further from its teacher and its photos.

    Each round is a run beside the student's, for ns-eval, ns-viewer, ns-export-mobiler2l and this command. The same
    command goes on where it was interrupted.
    """

    load_config: Path
    """config.yml of the student's run, or the folder that has it. This run stays as it is."""
    rounds: int = 3
    """Number of rounds; fewer if the targets are met before."""
    fraction: float = 0.2
    """Fraction of the network's work (of its weights, if unstructured) that a round removes."""
    finetune_steps: int = 1000
    """Training steps of a round, after its pruning."""
    last_steps: Optional[int] = None
    """Training steps of the last round. The rounds before it then train with the learning rates of its begin, and do
    not fine-tune: their students are not finished. Left out: as the others."""
    schedule: Literal["iterative", "one-shot"] = "iterative"
    """one-shot: a single round removes as much as all rounds, and trains for as many steps as they."""
    criterion: Optional[Criterion] = None
    """Importance of a channel. taylor: change of the loss, estimated. magnitude: size of its weights. bn: scale of its
    batch norm, if the student has it. Left out: taylor, or magnitude for single weights, which have no other."""
    unstructured: bool = False
    """Set single weights to zero instead of removing channels. The student does not become faster."""
    target_gmac: Optional[float] = None
    """Stop at this work for a view, in 10^9 multiply-accumulate operations."""
    target_mb: Optional[float] = None
    """Stop at this size of the weights in fp16, in 10^6 bytes. If both targets are given, both must be met."""
    multiple: int = 8
    """Numbers of channels become multiples of this, which suits the vector units of processors."""
    scoring_batches: int = 32
    """Batches from which taylor estimates the importance."""
    rate: float = 0.5
    """Learning rates of a round, as a fraction of those in the student's recipe."""
    name: str = "pruned"
    """The run of round N is called RUN-NAME-N."""

    def main(self) -> None:
        """Prunes, and prints the figures of all rounds."""
        self._check_options()
        config_path = self.load_config / "config.yml" if self.load_config.is_dir() else self.load_config
        first = load_student(config_path.resolve())
        method = first.config.method_name
        if config_path.resolve().parents[1].name != method:
            raise UserError(
                f"{config_path.parent} is not in a folder named {method}, and nerfstudio trains in no other: move it "
                f"to OUTPUTS/EXPERIMENT/{method}/NAME."
            )
        rounds = self._plan(self._targets(first.model))
        self._check_student(first.model, rounds[0].targets)
        run, recipe = config_path.resolve().parent, cast(DistillationTrainerConfig, first.config)
        folder, model, found, started = run, first.model, [measure(first.model)], time.perf_counter()
        for number, options in enumerate(rounds, start=1):
            if options.targets.are_met_by(model.network):
                log_line(f"The targets are met after {number - 1} of {len(rounds)} rounds.")
                break
            folder = run.with_name(f"{run.name}-{self.name}-{number}")
            log_line(f"Round {number} of {len(rounds)}, in {folder}")
            record = finish_round(recipe, model, folder, options, is_last=number == len(rounds))
            assert record.before is not None and record.after is not None
            found[-1].psnr = record.before.psnr
            found.append(record.after)
            write_curves(found, folder)
            left = (time.perf_counter() - started) / number * (len(rounds) - number)
            log_line(f"Round {number}: {record.after.psnr:.2f} dB on held-out photos; about {duration(left)} left")
            model = load_student(folder / "config.yml").model
        print_rounds(found)
        log_line(f"Next: export it with `ns-export-mobiler2l --load-config {folder} --output-dir exports/{self.name}`.")

    def _plan(self, targets: Targets) -> List[RoundOptions]:
        """The rounds, unless the targets are met before."""
        fraction, steps, last_steps, count = self.fraction, self.finetune_steps, self.last_steps, self.rounds
        if self.schedule == "one-shot":
            steps = (self.rounds - 1) * steps + (last_steps or steps)
            fraction, last_steps, count = 1 - (1 - fraction) ** self.rounds, None, 1
        options = RoundOptions(
            fraction, targets, self.unstructured, self._criterion, self.multiple, self.scoring_batches, self.rate,
            steps, last_steps,
        )  # fmt: skip
        return count * [options]

    @property
    def _criterion(self) -> Criterion:
        return self.criterion or ("magnitude" if self.unstructured else "taylor")

    def _targets(self, model: MobileR2LModel) -> Targets:
        """Targets of the network alone; the embedder stays as it is."""
        h, w = model.sampler.grid.tolist()
        macs, parameters = count_macs(model.embedder, h, w), count_parameters(model.embedder)
        return Targets(
            None if self.target_gmac is None else (1e9 * self.target_gmac - macs) / (h * w),
            None if self.target_mb is None else 1e6 * self.target_mb / 2 - parameters,
        )

    def _check_options(self) -> None:
        if not 0 < self.fraction < 1:
            raise UserError(f"--fraction {self.fraction} cannot be removed: pass a number between 0 and 1.")
        for option in ("rounds", "finetune_steps", "last_steps", "multiple", "scoring_batches", "rate"):
            if getattr(self, option) is not None and getattr(self, option) <= 0:
                raise UserError(f"--{option.replace('_', '-')} {getattr(self, option)} must be larger than 0.")
        if not self.name or "/" in self.name:
            raise UserError(f"--name '{self.name}' cannot be a part of a folder's name: pass letters and digits.")
        if self.unstructured:
            if self.criterion not in (None, "magnitude"):
                raise UserError(f"--criterion {self.criterion} is for channels: pass --unstructured False.")
            if self.target_gmac is not None or self.target_mb is not None:
                raise UserError(
                    "zeros make no file smaller and no network faster: pass --unstructured False for a target."
                )

    def _check_student(self, model: MobileR2LModel, targets: Targets) -> None:
        if self._criterion == "bn" and not model.network.config.batch_norm:
            raise UserError(f"{self.load_config} has a student without batch norm: pass --criterion taylor.")
        if targets.are_met_by(model.network):
            figures = measure(model)
            raise UserError(
                f"{self.load_config} has {figures.gmac} GMAC and {figures.megabytes_fp16} MB in fp16 already: pass a "
                "smaller target."
            )


def entrypoint() -> None:
    """The command ns-prune-mobiler2l."""
    tyro.extras.set_accent_color("bright_yellow")
    tyro.cli(tyro.conf.FlagConversionOff[PruneMobileR2L]).main()
