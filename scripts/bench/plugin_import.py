"""What the plugin costs every ns-* command: seconds of nerfstudio's imports, and of ours on top.

    python scripts/bench/plugin_import.py --json docs/benchmarks/import.json

Each run is a process of its own, in which nerfstudio is imported without our entry points, then they are loaded as
nerfstudio would. Two processes with and without us would differ by more than what is measured.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Dict

if __name__ == "__main__":  # modules are found in scripts/, not in scripts/bench/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.common import CPU, console, with_machine, write_figures

RUN = """
import contextlib, importlib.metadata, io, json, time
found = importlib.metadata.entry_points
group, nowhere = "nerfstudio.method_configs", {"group": "nowhere"}
importlib.metadata.entry_points = lambda **where: found(**(nowhere if where.get("group") == group else where))

def timed(work):
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        result = work()
        return time.process_time() - start, result
    return time.process_time() - start, None

def nerfstudio():
    import nerfstudio.scripts.train
    from nerfstudio.configs import method_configs
    return method_configs

def ours():
    return [entry.load() for entry in found(group=group) if entry.dist.name == "mobiler2l-ns"]

def show_help(methods, descriptions):
    import tyro
    union = tyro.extras.subcommand_type_from_defaults(defaults=methods, descriptions=descriptions)
    tyro.cli(tyro.conf.SuppressFixed[tyro.conf.FlagConversionOff[union]], args=["--help"])

alone, configs = timed(nerfstudio)
plugin, specs = timed(ours)
methods, texts = dict(configs.all_methods), dict(configs.all_descriptions)
first, _ = timed(lambda: show_help(methods, texts))
again, _ = timed(lambda: show_help(methods, texts))
methods.update({spec.config.method_name: spec.config for spec in specs})
texts.update({spec.config.method_name: spec.description for spec in specs})
longer, _ = timed(lambda: show_help(methods, texts))
print(json.dumps({"nerfstudio": alone + first, "plugin": plugin + longer - again, "methods": len(specs)}))
"""


def measure(runs: int) -> Dict:
    """Medians over several processes of the CPU time of ``ns-train --help``: nerfstudio's own, and what we add."""
    results = []
    for _ in range(runs):
        command = [sys.executable, "-W", "ignore", "-c", RUN]
        results.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    seconds = {name: round(median(result[name] for result in results), 3) for name in ("nerfstudio", "plugin")}
    return {"runs": runs, "methods": results[0]["methods"], "cpu_seconds_of_ns_train_help": seconds}


def main() -> None:
    """Reads the command line, measures and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="processes, of which the median counts")
    parser.add_argument("--json", type=Path, help="for the figures")
    arguments = parser.parse_args()
    figures = with_machine(measure(arguments.runs), CPU)
    seconds = figures["cpu_seconds_of_ns_train_help"]
    console.print(
        f"ns-train --help: nerfstudio {seconds['nerfstudio']:.2f} s, our {figures['methods']} methods "
        f"{seconds['plugin']:.3f} s more ({seconds['plugin'] / seconds['nerfstudio']:.1%})"
    )
    if arguments.json is not None:
        write_figures(figures, arguments.json)


if __name__ == "__main__":
    main()
