"""Results of an export: the content of report.json and the table on the console."""

import json
from pathlib import Path
from typing import Dict, Optional

from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table

from mobiler2l_ns.errors import UserError, first_line
from mobiler2l_ns.export.verification import FileFigures
from mobiler2l_ns.model import MobileR2LModel
from mobiler2l_ns.student.network import count_macs, count_parameters

RECORD = "distillation.json"  # what the training wrote beside config.yml


def training_record(config_path: Path) -> Dict[str, object]:
    """What the training wrote about itself beside config.yml; empty where it wrote nothing.

    Raises:
        UserError: The file is damaged.
    """
    path = config_path.parent / RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()).items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): delete it to export without the figures of the training."
        ) from None


def report_dict(
    config_path: Path,
    method: Optional[str],
    step: int,
    model: MobileR2LModel,
    figures: Dict[str, FileFigures],
    record: Dict[str, object],
) -> Dict[str, object]:
    """The part of report.json that needs no photos.

    Args:
        config_path: The run's config.yml.
        method: Name of the run's method.
        step: Training step of the weights.
        model: The student.
        figures: Figures by file.
        record: Of the training, see ``training_record``.
    """
    (h, w), (height, width) = model.sampler.grid.tolist(), model.size

    def column(name: str) -> Dict[str, object]:
        values = {file: getattr(entry, name) for file, entry in figures.items()}
        return {file: value for file, value in values.items() if value is not None}

    return {
        "run": {"config": str(config_path), "step": step, "method": method},
        "image": {"height": height, "width": width},
        "grid": {"height": h, "width": w},
        "params": count_parameters(model.embedder) + count_parameters(model.network),
        "gmac": (count_macs(model.embedder, h, w) + count_macs(model.network, h, w)) / 1e9,
        "parity": {name: column(name) for name in ("max_abs", "mean_abs", "tolerance", "psnr")},
        "size_bytes": column("size_bytes"),
        "latency_ms": column("latency_ms"),
        "operators": column("operators"),
        "pool": record.get("pool"),
        "finetuning": record.get("finetuning"),
    }


def print_table(model: MobileR2LModel, figures: Dict[str, FileFigures]) -> None:
    """Prints a row for each file: size, time, and difference from torch.

    Args:
        model: The student.
        figures: Figures by file.
    """
    parts, grid = (model.embedder, model.network), model.sampler.grid.tolist()
    parameters, macs = sum(map(count_parameters, parts)), sum(count_macs(part, *grid) for part in parts)
    table = Table(title=f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.2f} GMAC per image")
    for heading in ("file", "kB", "ms (CPU)", "nodes", "max error", "mean error", "allowed", "PSNR to torch"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for name, file in figures.items():
        table.add_row(
            name,
            "" if file.size_bytes is None else f"{file.size_bytes / 1e3:.0f}",
            "" if file.latency_ms is None else f"{file.latency_ms:.1f}",
            "" if file.operators is None else str(sum(file.operators.values())),
            "" if file.max_abs is None else f"{file.max_abs:.1e}",
            "" if file.mean_abs is None else f"{file.mean_abs:.1e}",
            "" if file.tolerance is None else f"{file.tolerance:.1e}",
            "" if file.psnr is None else f"{file.psnr:.1f}",
        )
    CONSOLE.print(table)
