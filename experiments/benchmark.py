"""Measures rounds and evaluations on this machine, together with baselines.

    python experiments/benchmark.py --workload=r4-mlp --against=eager_pytorch --output=FILE.json
    python experiments/benchmark.py --workload=adapters --against=peft,torch_heads

Prints, and writes as JSON: compile times, median and range of the seconds per round and per
evaluation, examples per second, padding (of clients that are vmapped together, and of partial
batches), FLOP/s relative to those of square matrices, peak memory and the number of compilations.
Examples are synthetic, with the shapes and sizes of the workloads in `workloads.py`. A baseline
runs FedAvg, whatever the workload's method, in a separate process with the interpreter of
`--peer_python`, in all its settings; the fastest is reported. The workload `adapters` trains
adapters of many users beside loops over users, and answers requests of different users in one call.
"""

from __future__ import annotations

import pathlib
import time

import ml_collections
import rich.table
from absl import flags
from benchmarking import adapters, baselines, measuring, workloads
from ml_collections import config_flags

from pfljax.cli import app
from pfljax.errors import UserError
from pfljax.training.run import writers
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment

_LIST = "; ".join(f"{name}: {each.about}" for name, each in workloads.WORKLOADS.items())
_ADAPTERS = "adapters"
_ONE_LINE = {f"{_ADAPTERS}-{line}": [line] for line in adapters.LINES}
_LINES = {_ADAPTERS: list(adapters.LINES), **_ONE_LINE}
_LIST += f"; {_ADAPTERS}: LoRA and heads of many users, beside one user after another"
_LIST += "".join(f"; {name}: {line} alone" for name, (line,) in _ONE_LINE.items())
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
_NUM_CLIENTS = flags.DEFINE_integer(
    "num_clients", 1000, "Clients of the workload population, and users of adapters if given."
)
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
    if _ROUNDS.value < 1 or _EVALUATIONS.value < 0:
        raise UserError("--rounds must be at least 1, and --evaluations at least 0.")
    if name in _LINES:
        return of_adapters(name, engine)
    workload = workloads.find(name, _NUM_CLIENTS.value)
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


def of_adapters(workload: str, engine: ml_collections.ConfigDict) -> None:
    """Measures adapters of many users, after the baselines, in turn."""
    pythons = baselines.pythons(_PEER_PYTHON.value)
    for baseline in _AGAINST.value:
        baselines.check(baseline, _ADAPTERS, None, pythons[baseline])
    peers = {
        baseline: adapters.run_baseline(baseline, _ROUNDS.value, pythons[baseline])
        for baseline in _AGAINST.value
    }
    users = _NUM_CLIENTS.value if flags.FLAGS["num_clients"].present else 0
    lines = {
        name: adapters.measure(name, users, engine, _ROUNDS.value) for name in _LINES[workload]
    }
    for name, line in lines.items():
        if peer := peers.get(adapters.LINES[name].baseline):
            per_step = "milliseconds_per_user_step"
            line |= {"ratio": peer[per_step] / line[per_step], "against": peer["system"]}
    figures = {"workload": workload, "date": time.strftime("%Y-%m-%d")}
    figures |= {**measuring.machine(engine.devices), "lines": lines, "baselines": peers}
    if _OUTPUT.value:
        writers.write_json(pathlib.Path(_OUTPUT.value), figures)
    title = f"{workload}: {adapters.STEPS} steps of {adapters.BATCH} ratings for each user"
    app.say(table(title, {**lines, **peers}))


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
    "trained": lambda of: of["about"],
    "setting": lambda of: of["setting"],
    "users": lambda of: f"{of['users']:,}",
    "parameters of a user": lambda of: f"{of['parameters_of_a_user']:,}",
    "all users (s)": lambda of: _seconds(of["seconds_of_all_users"]),
    "user's step (ms)": lambda of: f"{of['milliseconds_per_user_step']:.4g}",
    "CPU time, user's step (ms)": lambda of: f"{of['processor_milliseconds_per_user_step']:.4g}",
    "compile (s)": lambda of: f"{of['seconds_compile']:.2f}",
    "against": lambda of: of["against"],
    "requests/s, one a call": lambda of: f"{of['requests_per_second']['one by one']:,.0f}",
    "requests/s, 256 a call": lambda of: f"{of['requests_per_second']['256 in a call']:,.0f}",
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
