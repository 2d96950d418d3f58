"""What the quickstart prints at its end: a table of figures, and the commands to run next."""

from typing import Dict

from rich.table import Table


def summary(report: Dict, scene: str) -> Table:
    """The main figures as one table; PSNR and SSIM are against held-out photos."""
    title = f"{scene}, {report['image']['width']}x{report['image']['height']}"
    table = Table(title=title, title_justify="left", caption=_cost(report), caption_justify="left")
    table.add_column()
    for column in ("PSNR [dB]", "SSIM", "size [kB]", "time [ms]", "max |onnx - torch|"):
        table.add_column(column, justify="right")
    for name, value in report.get("psnr", {}).items():
        table.add_row("onnxruntime" if name == "onnx" else name, f"{value:.2f}", f"{report['ssim'][name]:.3f}")
    table.add_section()
    for name, size in report["size_bytes"].items():
        latency, parity = report["latency_ms"][name], report["parity"]["max_abs"][name]
        table.add_row(name, "", "", f"{size / 1000:.0f}", f"{latency:.1f}", f"{parity:.1e}")
    return table


def _cost(report: Dict) -> str:
    lines = [f"network: {report['params'] / 1e6:.2f} M parameters, {report['gmac']:.2f} GMAC a view"]
    if pool := report["pool"]:
        share = 100 * pool["share_of_training_time"]
        lines.append(
            f"teacher views: {pool['views']} in {pool['teacher_seconds']:.0f} s ({share:.0f} % of training), "
            f"{pool['bytes'] / 1e6:.0f} MB in memory, nothing on disk"
        )
    if tuning := report.get("finetuning"):
        lines.append(
            f"fine-tuning on the photos: {tuning['psnr_before']:.2f} -> {tuning['psnr_after']:.2f} dB on held-out ones"
        )
    lines.append("seconds: " + ", ".join(f"{stage} {value:.0f}" for stage, value in report["seconds"].items()))
    lines.append(f"peak memory of one process: {report['peak_memory_mb']} MB")
    return "\n".join(lines)


def next_steps(student: str, folder: str) -> str:
    """Commands to run next, given the student's config.yml and the folder of the exports."""
    return (
        f"Open {folder}/comparison.png; beside it is one folder of files for each target.\n"
        "Next (inside .venv: source .venv/bin/activate):\n"
        f"  python -m http.server --directory {folder}/web   (and open http://localhost:8000)\n"
        f"  ns-viewer --load-config {student}\n"
        f"  ns-eval --load-config {student} --output-path {folder}/eval.json\n"
        f"  ns-render interpolate --load-config {student} --output-path {folder}/video.mp4   (needs ffmpeg)"
    )
