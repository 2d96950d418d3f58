"""What pruning did: a record in each round's folder, a table, and curves of PSNR against work."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional

from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table

from mobiler2l_ns.errors import UserError
from mobiler2l_ns.files import write_json
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.pruning.masks import nonzero_fraction
from mobiler2l_ns.student.network import count_macs, count_parameters

RECORD, PLOT = "pruning.json", "pruning.png"


@dataclass
class Figures:
    """A student's size and quality."""

    gmac: float
    """Work for a view, in 10^9 multiply-accumulate operations of embedder and network."""
    parameters: int
    megabytes_fp16: float
    nonzero_fraction: float
    """Fraction of the network's weights that are not zero."""
    psnr: Optional[float] = None
    """Mean PSNR in dB of a few held-out photos."""


def measure(model: MobileR2LModel, psnr: Optional[float] = None) -> Figures:
    """The figures of a student."""
    grid = model.sampler.grid.tolist()
    parameters = count_parameters(model.network) + count_parameters(model.embedder)
    return Figures(
        gmac=round((count_macs(model.network, *grid) + count_macs(model.embedder, *grid)) / 1e9, 4),
        parameters=parameters,
        megabytes_fp16=round(2 * parameters / 1e6, 3),
        nonzero_fraction=round(nonzero_fraction(model.network), 4),
        psnr=None if psnr is None else round(psnr, 3),
    )


@dataclass
class Record:
    """What a round was asked for, and its student before and after it."""

    options: Dict[str, object]
    before: Optional[Figures] = None
    after: Optional[Figures] = None
    """None: the round is not finished."""

    def save(self, folder: Path) -> None:
        """Writes the record, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, asdict(self))


def load_record(folder: Path, options: Dict[str, object]) -> Record:
    """The record of a round's folder; a new one where there is none.

    Raises:
        UserError: The folder belongs to a round with other options, or to something else.
    """
    if not folder.exists():
        return Record(options)
    try:
        saved = json.loads((folder / RECORD).read_text())
        before, after = (saved[name] and Figures(**saved[name]) for name in ("before", "after"))
        record = Record(saved["options"], before, after)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is no round of pruning: pass another --name, or delete this folder.") from None
    if record.options != options:
        raise UserError(
            f"{folder} was pruned with other options: pass the same ones to go on, or another --name to start anew."
        )
    return record


def print_rounds(figures: List[Figures]) -> None:
    """Prints a table with a row for the student and for each round."""
    table = Table("round", "GMAC", "of it", "parameters", "MB in fp16", "PSNR [dB]", title="pruning")
    for number, found in enumerate(figures):
        share = f"{found.gmac / figures[0].gmac:.2f}"
        if found.nonzero_fraction < 1:
            share += f", {found.nonzero_fraction:.2f} of the weights"
        psnr = "-" if found.psnr is None else f"{found.psnr:.2f}"
        table.add_row(
            str(number or "before"), f"{found.gmac:.3f}", share, f"{found.parameters:,}", f"{found.megabytes_fp16:.2f}",
            psnr,
        )  # fmt: skip
    CONSOLE.print(table)


def write_curves(figures: List[Figures], folder: Path) -> None:
    """A plot of PSNR against work, and the same curve for TensorBoard, whose steps are then 10^6 operations."""
    from matplotlib.figure import Figure
    from torch.utils.tensorboard.writer import SummaryWriter

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="GMAC", ylabel="PSNR on held-out photos [dB]")
    axes.plot([found.gmac for found in figures], [found.psnr or 0.0 for found in figures], marker="o")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    figure.savefig(folder / PLOT, dpi=120)
    with SummaryWriter(str(folder)) as curves:
        for found in figures:
            curves.add_scalar("Pruning/PSNR against MMAC", found.psnr, round(1000 * found.gmac))
