"""Measures rounds and evaluations on this machine, together with baselines.

    python experiments/benchmark.py --workload=r4-mlp --against=eager_pytorch --output=FILE.json

Prints, and writes as JSON: compile times, median and range of the seconds per round and per
evaluation, examples per second, padding (of clients that are vmapped together, and of partial
batches), FLOP/s relative to those of square matrices, peak memory and the number of compilations.
Examples are synthetic, with the shapes and sizes of the workloads in `workloads.py`. A baseline
runs FedAvg, whatever the workload's method, in a separate process with the interpreter of
`--peer_python`, in all its settings; the fastest is reported.
"""

from __future__ import annotations

import pathlib
import time

import ml_collections
import rich.table
from absl import flags
from benchmarking import baselines, measuring, workloads
from ml_collections import config_flags

from pfljax.cli import app
from pfljax.errors import UserError
from pfljax.training.run import writers
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment

_LIST = "; ".join(f"{name}: {each.about}" for name, each in workloads.WORKLOADS.items())
_WORKLOAD = flags.DEFINE_string("workload", "r4-mlp", f"The workload. {_LIST}.")
_AGAINST = flags.DEFINE_list(
    "against", [], f"Baselines to compare with: {', '.join(baselines.BASELINES)}."
)
_PEER_PYTHON = flags.DEFINE_list(
    "peer_python", [], "BASELINE=PYTHON,...: interpreters with the baselines; by default this one."
)
_PFLLIB_DIR = flags.DEFINE_string(
    "pfllib_dir", "", "A checkout of PFLlib, for the baseline pfllib."
)
_OUTPUT = flags.DEFINE_string("output", None, "The file for the figures as JSON.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds, or calls of several rounds.")
_EVALUATIONS = flags.DEFINE_integer("evaluations", 3, "Timed evaluations; 0 for none.")
_NUM_CLIENTS = flags.DEFINE_integer("num_clients", 1000, "Clients of the workload population.")
_DEFAULT = config_lib.default_config()
# Figures are of the fastest client batch size, and results contain it.
_DEFAULT.engine.clients_per_chunk = "auto"
config_flags.DEFINE_config_dict(
    "config",
    ml_collections.ConfigDict({key: _DEFAULT[key] for key in ("engine", "compute_dtype")}),
)


def main():
    name, engine = _WORKLOAD.value, flags.FLAGS.config.engine
    compute_dtype = flags.FLAGS.config.compute_dtype
    workload = workloads.find(name, _NUM_CLIENTS.value)
    if _ROUNDS.value < 1 or _EVALUATIONS.value < 0:
        raise UserError("--rounds must be at least 1, and --evaluations at least 0.")
    experiment.check(workloads.study(workload, engine, compute_dtype))
    pythons = baselines.pythons(_PEER_PYTHON.value)
    for baseline in _AGAINST.value:
        python = pythons.get(baseline, "")
        baselines.check(baseline, name, workload, python, _PFLLIB_DIR.value)
    # Baselines run first, in separate processes, while this one is idle.
    peers = {
        baseline: baselines.run(
            baseline, workload, _ROUNDS.value, pythons[baseline], _PFLLIB_DIR.value
        )
        for baseline in _AGAINST.value
    }
    dataset = workloads.synthetic(workload)
    measured = [
        measuring.measure(
            workload._replace(cohort=cohort),
            dataset,
            engine,
            rounds=_ROUNDS.value,
            evaluations=_EVALUATIONS.value,
            compute_dtype=compute_dtype,
        )
        for cohort in workload.cohorts or (workload.cohort,)
    ]
    figures = {"workload": name, "date": time.strftime("%Y-%m-%d")}
    figures |= measuring.machine(engine.devices)
    if workload.cohorts:
        figures["cohorts"] = measured
        columns = {f"cohort {each['cohort']}": each for each in measured}
    else:
        (ours,) = measured
        for peer in peers.values():
            peer["ratio"] = ours["examples_per_second"] / peer["examples_per_second"]
        figures |= {**ours, "baselines": peers}
        columns = {"pfljax": ours, **peers}
    if _OUTPUT.value:
        writers.write_json(pathlib.Path(_OUTPUT.value), figures)
    app.say(table(f"{name}: {workload.about}", columns))


def table(title: str, columns: dict[str, dict]) -> rich.table.Table:
    """Returns figures as a table with a column for each system or cohort."""
    shown = rich.table.Table(title=title)
    for name in ("", *columns):
        shown.add_column(name, justify="left" if not name else "right")
    for label, cell in _CELLS.items():
        cells = [_cell(cell, figures) for figures in columns.values()]
        if any(cells):
            shown.add_row(label, *cells)
    return shown


def _seconds(spread: dict[str, float]) -> str:
    """Returns the median, with the range below it."""
    return f"{spread['median']:.4g}\n{spread['min']:.4g} to {spread['max']:.4g}"


_CELLS = {
    "setting": lambda of: of["setting"],
    "round (s)": lambda of: _seconds(of["seconds_per_round"]),
    "CPU time, round (s)": lambda of: _seconds(of["processor_seconds_per_round"]),
    "examples/s": lambda of: f"{of['examples_per_second']:,.0f}",
    "speed-up": lambda of: f"{of['ratio']:.2f}",
    "evaluation (s)": lambda of: _seconds(of["seconds_per_evaluation"]),
    "compile round (s)": lambda of: f"{of['seconds_compile']['round']:.2f}",
    "compile evaluation (s)": lambda of: (
        of["seconds_per_evaluation"] and f"{of['seconds_compile']['evaluation']:.2f}"
    ),
    "compilations": lambda of: f"{of['compilations']}",
    "padding of clients": lambda of: f"{of['padding_fraction']:.1%}",
    "padding of batches": lambda of: f"{of['empty_rows_fraction']:.1%}",
    "GFLOP/s, direct sums": lambda of: f"{of['arithmetic']['flop_per_second'] / 1e9:,.1f}",
    "of matmul peak": lambda of: f"{of['arithmetic']['share_of_matmul_peak']:.1%}",
    "device (MB)": lambda of: f"{of['peak_device_bytes'] / 1e6:,.1f}",
    "host (MB)": lambda of: f"{of['peak_host_bytes'] / 1e6:,.0f}",
}


def _cell(cell, figures: dict) -> str:
    """Returns the text of a figure; empty if the system does not have it."""
    try:
        return cell(figures) or ""
    except (KeyError, TypeError):
        return ""


if __name__ == "__main__":
    app.run(main)
