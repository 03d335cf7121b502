"""The binaries as users run them: what they leave behind, and how they refuse a mistake."""

import gzip
import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from pfljax import data
from pfljax.report import partitions
from pfljax.training.run import writers

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--config=configs/quickstart.py"
SMALL = [
    QUICK,
    "--config.data.num_clients=4",
    "--config.data.partition=iid",
    "--config.rounds=2",
    "--config.eval_every=1",
    "--config.engine.devices=2",
]


def python(*command, **options):
    """Runs Python in the repository's root, as a user does, with the tests' compilation cache."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def succeed(*command):
    done = python(*command)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of train.py: its work directory and its output."""
    place = tmp_path_factory.mktemp("trained") / "run"
    return place, succeed("experiments/train.py", *SMALL, f"--workdir={place}")


def test_train_leaves_a_run_behind(trained):
    place, done = trained
    result = writers.read_json(place / "result.json")
    assert (result["algorithm"], result["rounds"], result["num_clients"]) == ("fedavg", 2, 4)
    assert f"test accuracy {result['personal_accuracy']['last']:.2%} after 2" in done.stdout
    assert done.stderr == ""


def test_evaluate_repeats_the_last_evaluation(trained, tmp_path):
    place, _ = trained
    output = tmp_path / "clients.csv"
    done = succeed("experiments/evaluate.py", f"--workdir={place}", f"--output={output}")
    result = writers.read_json(place / "result.json")
    assert "fedavg, round 2" in done.stdout
    assert f"{result['personal_accuracy']['last']:.2%}".replace("%", " %") in done.stdout
    with np.load(place / "clients.npz") as clients:
        expected = clients["personal_test_accuracy"]
    rows = [line.split(",") for line in output.read_text().splitlines()]
    column = rows[0].index("personal_test_accuracy")
    np.testing.assert_array_equal([float(row[column]) for row in rows[1:]], expected)


# comparing


class Comparison:
    """compare.py, run three times in one place."""

    def __init__(self, place):
        self.place = place
        self.command = ["experiments/compare.py", *SMALL, f"--workdir={place}"]
        self.command.append("--config.seeds=(0,1)")
        self.first = succeed(*self.command, "--config.algorithms=('local','fedavg')")
        self.times = self.results()
        self.second = succeed(*self.command, "--config.algorithms=('local','fedavg')", "--quiet")
        self.times_again = self.results()
        self.third = succeed(*self.command, "--config.algorithms=('local','fedavg','ditto')")
        self.times_at_last = self.results()

    def results(self):
        """When each result was written."""
        return {
            file.relative_to(self.place).as_posix(): file.stat().st_mtime_ns
            for file in self.place.rglob("result.json")
        }


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return Comparison(tmp_path_factory.mktemp("comparison"))


def test_compare_runs_every_method_with_every_seed(comparison):
    runs = {f"{name}/seed_{seed}/result.json" for name in ("local", "fedavg") for seed in (0, 1)}
    assert set(comparison.times) == runs
    for name in runs:
        result = writers.read_json(comparison.place / name)
        assert name == f"{result['algorithm']}/seed_{result['seed']}/result.json"
    assert "local" in comparison.first.stdout
    assert "digits, 4 clients, iid" in comparison.first.stdout


def test_the_same_command_repeats_nothing(comparison):
    assert comparison.times_again == comparison.times


def test_quiet_says_nothing(comparison):
    assert (comparison.second.stdout, comparison.second.stderr) == ("", "")


def test_a_method_added_costs_only_itself(comparison):
    last = comparison.times_at_last
    added = {"ditto/seed_0/result.json", "ditto/seed_1/result.json"}
    assert set(last) - set(comparison.times) == added
    assert {name: last[name] for name in comparison.times} == comparison.times


def test_the_comparison_is_written_to_files(comparison):
    lines = (comparison.place / "comparison.md").read_text().splitlines()
    methods = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert methods == ["method", "local", "fedavg", "ditto"]
    assert len((comparison.place / "comparison.csv").read_text().splitlines()) == 1 + 3 * 2
    for name in ("curves.png", "clients.png", *partitions.PICTURES):
        assert (comparison.place / name).read_bytes().startswith(b"\x89PNG")
    for name in partitions.PICTURES:
        assert f"]({name})" in "\n".join(lines)


def test_seeds_in_one_program_give_what_seeds_one_by_one_give(comparison, tmp_path):
    command = [word for word in comparison.command if not word.startswith("--workdir")]
    options = ["--config.algorithms=('local','fedavg')", "--vmap_seeds", f"--workdir={tmp_path}"]
    done = succeed(*command, *options)
    assert "fedavg" in done.stdout
    for name in comparison.times:
        ours, theirs = (writers.read_json(place / name) for place in (tmp_path, comparison.place))
        for model in ("personal_accuracy", "global_accuracy"):
            assert (ours[model] or {}) == pytest.approx(theirs[model] or {}, abs=1e-6)
        assert ours["compilations"] == 1
    assert succeed(*command, *options, "--quiet").stdout == ""


def test_seeds_that_stopped_at_different_rounds_resume_with_their_own_data(comparison, tmp_path):
    command = [
        word for word in comparison.command if not word.startswith(("--workdir", "--config.seeds"))
    ]
    command += ["--config.algorithms=('local','fedavg')", "--vmap_seeds", f"--workdir={tmp_path}"]
    succeed(*command, "--config.seeds=(1,)", "--config.rounds=1")
    succeed(*command, "--config.seeds=(0,1)")
    for name in comparison.times:
        clients = [
            np.load((place / name).parent / "clients.npz") for place in (tmp_path, comparison.place)
        ]
        for key in ("class_counts", "test_size", "personal_test_accuracy"):
            np.testing.assert_allclose(*(each[key] for each in clients), atol=1e-6)


def test_seeds_on_one_partition_or_on_separate_partitions(comparison, tmp_path):
    command = [word for word in comparison.command if not word.startswith("--workdir")]
    methods = "--config.algorithms=('local',)"
    done = succeed(*command, methods, "--config.seeds_vary=training", f"--workdir={tmp_path}")
    assert "2 seeds on one partition" in done.stdout

    def sizes(place):
        return [
            np.load(place / "local" / f"seed_{seed}" / "clients.npz")["class_counts"].tolist()
            for seed in (0, 1)
        ]

    same, own = sizes(tmp_path), sizes(comparison.place)
    assert same[0] == same[1] == own[0] != own[1]


def test_a_method_that_diverges_is_marked_and_the_others_continue(comparison, tmp_path):
    command = ["experiments/compare.py", *SMALL, f"--workdir={tmp_path}"]
    command.append("--config.algorithms=('local','fedavg','fedper')")
    command += ["--config.learning_rates.fedavg=1e30", "--config.seeds=(0,)"]
    for _ in range(2):  # the second time nothing is repeated, and the end is the same
        done = python(*command)
        assert done.returncode == 2 and "Diverged: fedavg with seed 0; lower" in done.stderr
        assert "fedavg diverged" in " ".join(done.stdout.split())
        table = (tmp_path / "comparison.md").read_text()
        assert "| fedavg | diverged | - |" in table and "| fedper | " in table
    result = json.loads(
        (tmp_path / "fedavg" / "seed_0" / "result.json").read_text(), parse_constant=pytest.fail
    )
    assert "not finite in round 1" in result["diverged"]["reason"]
    assert "lower config.learning_rates.fedavg" in result["diverged"]["reason"]


SCENARIOS = """
from pfljax.training.study.config import default_config

def get_config():
    config = default_config()
    config.rounds, config.eval_every = 2, 1
    config.data.num_clients, config.engine.devices = 4, 2
    config.algorithms = ("local", "fedavg")
    config.scenarios = {
        name: {"data": {"partition": partition}}
        for name, partition in {"iid": "iid", "shards": %r}.items()
    }
    return config
"""


def test_a_comparison_in_several_scenarios(tmp_path):
    config, place = tmp_path / "config.py", tmp_path / "runs"
    config.write_text(SCENARIOS % "shards")
    command = ["experiments/compare.py", f"--config={config}", f"--workdir={place}"]
    done = succeed(*command)
    assert "2 methods in 2 scenarios" in done.stdout
    assert "4 clients, iid" in done.stdout and "4 clients, shards" in done.stdout
    results = sorted(place.rglob("result.json"))
    assert [file.relative_to(place).parts[:2] for file in results] == [
        *(("iid", "fedavg"), ("iid", "local"), ("shards", "fedavg"), ("shards", "local"))
    ]
    table = (place / "scenarios.md").read_text()
    accuracy = writers.read_json(results[3])["personal_accuracy"]["last"]
    assert f"{100 * accuracy:.2f}" in table
    times = [file.stat().st_mtime_ns for file in results]
    succeed(*command)
    assert [file.stat().st_mtime_ns for file in results] == times
    # A fault of the last scenario appears before the first one trains.
    config.write_text(SCENARIOS % "shardz")
    done = python(*command[:2], f"--workdir={tmp_path / 'other'}")
    assert done.returncode == 2 and "shardz" in done.stderr
    assert not list((tmp_path / "other").rglob("result.json"))
    # Other commands take one scenario.
    done = python("experiments/train.py", f"--config={config}", f"--workdir={tmp_path / 'other'}")
    assert done.returncode == 2 and "only the command compare runs" in done.stderr


def test_a_comparison_includes_finished_runs_evaluated_at_other_rounds(comparison):
    done = succeed(
        *comparison.command,
        "--config.algorithms=('fedper',)",
        "--config.eval_every=2",
    )
    methods = [line.split()[0] for line in done.stdout.splitlines() if " ± " in line]
    assert set(methods) - {"Test"} == {"fedper", "local", "fedavg", "ditto"}
    assert "evaluated at different rounds" in " ".join(done.stdout.split())


def test_the_overview_of_comparisons_and_sweeps(comparison, tmp_path):
    (tmp_path / "sweeps" / "digits").mkdir(parents=True)
    (tmp_path / "sweeps" / "digits" / "sweep_local.csv").write_text(
        "learning_rates.local,validation_accuracy,test_accuracy\n0.1,0.95,0.9\n1.0,diverged,diverged\n"
    )
    done = succeed(
        "experiments/overview.py",
        f"--comparisons={comparison.place.parent}",
        f"--sweeps={tmp_path / 'sweeps'}",
    )
    (line,) = [line for line in done.stdout.splitlines() if comparison.place.name in line]
    assert "**" in line and " ± " in line and line.startswith(f"| `{comparison.place.name}` | ")
    assert "| `digits` | `local` | 0.1: 95.0, 1.0: diverged |" in done.stdout
    refused = python("experiments/overview.py", f"--sweeps={tmp_path / 'nothing'}")
    assert refused.returncode == 2 and "is not a directory" in refused.stderr


def test_every_method_is_swept_with_the_same_values(tmp_path):
    command = ["experiments/sweep.py", *SMALL, f"--workdir={tmp_path}", "--every_method"]
    command += ["--config.algorithms=('local','fedper')", "--values=learning_rate=0.02,0.1,1e30"]
    done = succeed(*command)
    words = done.stdout.split()
    assert words.count("best:") == 2 and "diverged" in words
    for name in ("local", "fedper"):
        assert f"--config.learning_rates.{name}=0.1" in words
        assert "diverged" in (tmp_path / f"sweep_{name}.csv").read_text()


def test_a_sweep_names_the_best_value_by_validation(tmp_path):
    options = ["--config.algorithm=ditto", "--config.seeds=(0,1)", f"--workdir={tmp_path}"]
    values = ["--values=hparams.ditto.lam=0.01,1.0", "--values=learning_rate=0.1"]
    done = succeed("experiments/sweep.py", *SMALL, *options, *values)
    lines = (tmp_path / "sweep_ditto.csv").read_text().splitlines()
    assert lines[0].startswith("hparams.ditto.lam,learning_rates.ditto,validation")
    best = lines[1].split(",")
    assert float(best[2]) >= float(lines[2].split(",")[2]) > 0.1
    assert f"best: --config.hparams.ditto.lam={best[0]}" in done.stdout
    runs = sorted(path.parent.name for path in tmp_path.rglob("result.json"))
    assert runs == ["seed_0", "seed_0", "seed_1", "seed_1"]
    assert "best:" in succeed("experiments/sweep.py", *SMALL, *options, *values).stdout


# mistakes


def broken_configs(place):
    """Config files with one fault each."""
    (place / "syntax.py").write_text("def get_config(:\n")
    (place / "import.py").write_text("import pfljax_of_tomorrow\n")
    (place / "fails.py").write_text("def get_config():\n    return {}['absent']\n")
    (place / "exits.py").write_text("import sys\n\nsys.exit(7)\n")
    for name, value in (("none", "None"), ("word", "'ten'")):
        (place / f"{name}.py").write_text(
            "from pfljax.training.study.config import default_config\n\n\n"
            "def get_config():\n    config = default_config()\n    with config.ignore_type():\n"
            f"        config.rounds = {value}\n    return config\n"
        )
    (place / "bare.py").write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n    return ConfigDict({'rounds': 1})\n"
    )
    for name, line in {
        "key": "config.round = 3",
        "inner": "config.data.alhpa = 3.0",
        "model": "config.model.width = (3,)",
    }.items():
        (place / f"{name}.py").write_text(
            "from pfljax.training.study.config import default_config\n\n\n"
            f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
        )


def broken_data(place):
    """Data files with one fault each."""
    fashion = place / "fashion"
    fashion.mkdir()
    for name in data.sources.IDX_FILES:
        dimensions = 3 if "images" in name else 1
        shape = (20, 28, 28)[:dimensions]
        header = bytes([0, 0, 8, dimensions]) + np.array(shape, ">u4").tobytes()
        content = gzip.compress(header + bytes(int(np.prod(shape))))
        if name.startswith("train-images"):
            content = content[: len(content) // 2]
        (fashion / f"{name}.gz").write_bytes(content)

    digits = data.load(name="digits", num_clients=4, partition="iid")
    data.save_npz(str(place / "good.npz"), digits)
    arrays = dict(np.load(place / "good.npz"))
    labels = arrays["targets"].copy()
    labels[5] = 10
    np.savez(place / "label.npz", **{**arrays, "targets": labels})
    sizes, offsets = arrays["train_sizes"].copy(), arrays["validation_offsets"].copy()
    offsets[2] -= sizes[2]
    sizes[2] = 0
    empty = {"train_sizes": sizes, "validation_offsets": offsets}
    np.savez(place / "empty.npz", **{**arrays, **empty})


TRAIN = ["train.py", QUICK, "--workdir={place}/run"]
FEDJAX = ["benchmark.py", "--against=fedjax"]
SWEEP = ["sweep.py", QUICK, "--workdir={place}/run"]
COMPARE = ["compare.py", QUICK, "--workdir={place}/run"]
OPTIMIZER = "--config.client_optimizer"


def with_config(path):
    return ["train.py", f"--config={path}", "--workdir={place}/run"]


def with_data(name, folder):
    return [*TRAIN, f"--config.data.name={name}", f"--config.data.dir={{place}}/{folder}"]


# Commands with one mistake each, and what the refusal must name.
MISTAKES = {
    "unknown key": ([*TRAIN, "--config.round=3"], "Did you mean rounds?"),
    "unknown inner key": ([*TRAIN, "--config.data.alhpa=3"], "mean data.alpha?"),
    "unknown hyper-parameter": (
        [*TRAIN, "--config.hparams.ditto.lamb=1"],
        "mean hparams.ditto.lam?",
    ),
    "key of another library": (
        [*TRAIN, "--config.lr=0.1"],
        "Unknown config key 'lr'. Did you mean client_optimizer.learning_rate?",
    ),
    "unknown argument of the model": ([*TRAIN, "--config.model.width=3"], "'widths'"),
    "wrong argument of the model": ([*TRAIN, "--config.model.widths=(a,)"], "tuple[int, ...]"),
    "evaluation of nothing": (["evaluate.py", "--workdir={place}/none"], "contains no run"),
    "no best checkpoint": (["evaluate.py", "--workdir={trained}", "--best"], "best round"),
    "argument of no model": (["train.py", "--config.model.widths=3"], "--config="),
    "unknown option": ([*TRAIN, "--resum"], "resume"),
    "wrong type": ([*TRAIN, "--config.rounds=many"], "--config.rounds=many"),
    "half a round": ([*TRAIN, "--config.rounds=1.5"], "--config.rounds=1.5"),
    "no round": ([*TRAIN, "--config.rounds=0"], "config.rounds is 0"),
    "unknown method": ([*TRAIN, "--config.algorithm=ditoo"], "'ditto'"),
    "unknown model": ([*TRAIN, "--config.model.name=mlpp"], "'mlp'"),
    "model for other images": ([*TRAIN, "--config.model.name=cnn"], "8x8"),
    "model that is all head": (
        [*TRAIN, "--config.model.name=logistic", "--config.algorithm=fedper"],
        "needs a body",
    ),
    "unknown optimizer": ([*TRAIN, f"{OPTIMIZER}.name=adamm"], "'adam'"),
    "optimizer that wants the loss": ([*TRAIN, f"{OPTIMIZER}.name=lbfgs"], "lbfgs"),
    "another optimizer's argument": (
        [*TRAIN, f"{OPTIMIZER}.name=adam", f"{OPTIMIZER}.momentum=0.5"],
        "takes no 'momentum'",
    ),
    "negative learning rate": ([*TRAIN, f"{OPTIMIZER}.learning_rate=-1"], "learning_rate is -1.0"),
    "seed out of range": ([*TRAIN, "--config.seed=99999999999999999999"], "seed"),
    "unknown data set": ([*TRAIN, "--config.data.name=digit"], "'digits'"),
    "unknown partition": ([*TRAIN, "--config.data.partition=shard"], "'shards'"),
    "unknown shift": ([*TRAIN, "--config.data.feature_shift=turn"], "rotation, contrast, noise"),
    "more groups than classes": (
        [*TRAIN, "--config.data.partition=groups", "--config.data.num_groups=11"],
        "at most 10 groups",
    ),
    "missing data": (with_data("fashion_mnist", "nothing"), "train-images-idx3-ubyte.gz"),
    "truncated data": (with_data("fashion_mnist", "fashion"), "train-images-idx3-ubyte.gz is"),
    "label out of range": (with_data("npz", "label.npz"), "label 10 but 10 classes"),
    "client without examples": (with_data("npz", "empty.npz"), "client 2"),
    "cohort too large": ([*TRAIN, "--config.cohort.size=21"], "20 clients take part"),
    "another run's directory": (
        ["train.py", *SMALL, "--workdir={trained}", "--resume", "--config.batch_size=7"],
        "batch_size is 7 here and 10 there",
    ),
    "directory in use": (["train.py", *SMALL, "--workdir={trained}"], "--resume"),
    "directory that is a file": (["train.py", QUICK, "--workdir={place}/file"], "/file"),
    "positional argument": ([*TRAIN, "ditto"], "'ditto'"),
    "no config": (["train.py", "--workdir={place}/run"], "--config="),
    "no workdir": (["train.py", QUICK], "--workdir="),
    "empty workdir": (["train.py", QUICK, "--workdir="], "--workdir="),
    "workdir with a pattern": (["train.py", QUICK, "--workdir={place}/a[1]b"], "contains ["),
    "workdir with a backslash": (["train.py", QUICK, "--workdir={place}/a\\b"], "contains \\"),
    "workdir with a long name": (["train.py", QUICK, "--workdir={place}/" + 300 * "x"], "too long"),
    "workdir with a long path": (["train.py", QUICK, "--workdir={place}" + 1000 * "/xxxx"], "long"),
    "checkpoints that are a file": (["train.py", QUICK, "--workdir={place}/filed"], "/checkpoints"),
    "too many devices": ([*TRAIN, "--config.engine.devices=99"], "engine.devices is 99"),
    "too many rounds": ([*TRAIN, "--config.rounds=99999999999999999999"], "config.rounds"),
    "missing config file": (with_config("configs/quikstart.py"), "'configs/quikstart.py'"),
    "config file that is a folder": (with_config("configs"), "'configs'"),
    "syntax error": (with_config("{place}/syntax.py"), "syntax.py, line 1"),
    "config that imports what is not": (with_config("{place}/import.py"), "pfljax_of_tomorrow"),
    "config that exits": (with_config("{place}/exits.py"), "exit status 7"),
    "config without rounds": (with_config("{place}/none.py"), "config.rounds is None"),
    "config with a word for rounds": (with_config("{place}/word.py"), "config.rounds is 'ten'"),
    "config that fails": (with_config("{place}/fails.py"), "KeyError: absent"),
    "config that lacks keys": (with_config("{place}/bare.py"), "is missing"),
    "config with an unknown key": (with_config("{place}/key.py"), "'rounds'"),
    "config with an unknown inner key": (with_config("{place}/inner.py"), "'alpha'"),
    "config with an argument the model lacks": (with_config("{place}/model.py"), "'widths'"),
    "process without a coordinator": ([*TRAIN, "--num_processes=2"], "--coordinator"),
    "coordinator without a port": (
        [*TRAIN, "--coordinator=foo", "--num_processes=1", "--process_id=0"],
        "HOST:PORT",
    ),
    "coordinator without processes": ([*TRAIN, "--coordinator=foo:1234"], "--num_processes=N"),
    "process that is not among them": (
        [*TRAIN, "--coordinator=foo:1234", "--num_processes=2", "--process_id=2"],
        "--process_id is 2",
    ),
    "unknown method among several": ([*COMPARE, "--config.algorithms=('dito',)"], "'ditto'"),
    "no method": ([*COMPARE, "--config.algorithms=()"], "algorithms is empty"),
    "seed that is a word": ([*COMPARE, "--config.seeds=('a',)"], "'a'"),
    "nothing to sweep": (SWEEP, "--values="),
    "sweep without values": ([*SWEEP, "--values=seed"], "KEY=VALUE"),
    "sweep of an unknown key": ([*SWEEP, "--values=hparams.ditto.lamb=1"], "'lam'"),
    "sweep of a rate that another replaces": (
        [*SWEEP, "--config.learning_rates.fedavg=1.0", "--values=client_optimizer.learning_rate=1"],
        "learning_rates.fedavg",
    ),
    "sweep of a word": ([*SWEEP, "--values=algorithm=ditto"], "only numbers"),
    "sweep with a wrong value": ([*SWEEP, "--values=hparams.ditto.lam=a"], "values such as 0.1"),
    "sweep of what cannot be traced": ([*SWEEP, "--values=batch_size=5,10"], "config.batch_size"),
    "unknown workload": (["benchmark.py", "--workload=r4-mpl"], "'r4-mlp'"),
    "unknown baseline": (["benchmark.py", "--against=pytorch"], "'eager_pytorch'"),
    "baseline that is not installed": ([*FEDJAX, "--peer_python=fedjax=/bin/sh"], "pip install"),
    "baseline without its checkout": (
        ["benchmark.py", "--against=pfllib", "--pfllib_dir={place}"],
        "--pfllib_dir=DIR",
    ),
    "python of an unknown baseline": (["benchmark.py", "--peer_python=fedjx=/bin/sh"], "'fedjax'"),
    "python without a baseline": ([*FEDJAX, "--peer_python=/bin/sh"], "BASELINE=PYTHON"),
    "python that is not there": ([*FEDJAX, "--peer_python=fedjax={place}/python"], "is not a file"),
    "workload without baselines": ([*FEDJAX, "--workload=r12"], "remove --against"),
    "clients too different": (["benchmark.py", "--against=drjax"], "clients of equal size"),
    "too few clients": (["benchmark.py", "--workload=population", "--num_clients=9"], "cohort"),
    "no round to time": (["benchmark.py", "--rounds=0"], "--rounds"),
    "wrong engine of a workload": (["benchmark.py", "--config.engine.devices=-1"], "devices"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, trained):
    """What each mistaken command ended with; see commands.py."""
    place = tmp_path_factory.mktemp("mistakes")
    broken_configs(place)
    broken_data(place)
    (place / "nothing").mkdir()
    (place / "file").write_text("")
    (place / "filed").mkdir()
    (place / "filed" / "checkpoints").write_text("x")
    commands = {
        name: [word.format(place=place, trained=trained[0]) for word in command]
        for name, (command, _) in MISTAKES.items()
    }
    commands["help"] = ["train.py", "--help"]
    model = ["--config.model.widths=(7,)", "--config.model.name=mlp_bn", "--config.rounds=3"]
    commands["printed"] = ["train.py", QUICK, *model, "--print_config"]
    commands["wide"] = ["train.py", *SMALL, f"--workdir={place}/wide", "--config.model.widths=(7,)"]
    done = python("tests/experiments/commands.py", input=json.dumps(commands))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {name: {**found[name], "command": commands[name]} for name in commands}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_user_error_prints_one_line(outcomes, name):
    outcome = outcomes[name]
    assert outcome["stderr"].startswith("error: ") and outcome["stderr"].count("\n") == 1
    assert MISTAKES[name][1] in outcome["stderr"]
    assert "Traceback" not in outcome["stderr"] + outcome["stdout"]
    assert outcome["status"] == 2
    assert outcome["compiled"] == 0, "the mistake was found after something was compiled"


def test_a_refused_command_leaves_the_run_alone(outcomes, trained):
    result = writers.read_json(trained[0] / "result.json")
    assert writers.read_json(trained[0] / "config.json")["batch_size"] == 10
    assert result["rounds"] == 2


def test_help_is_no_error(outcomes):
    assert outcomes["help"]["status"] == 0
    assert "--workdir" in outcomes["help"]["stdout"]
    assert "--config:" in outcomes["help"]["stdout"]


def test_the_config_that_results_is_printed(outcomes):
    assert outcomes["printed"]["status"] == 0
    lines = outcomes["printed"]["stdout"].splitlines()
    for line in ("rounds = 3", "model.widths = (7,)", "hparams.ditto.lam = 0.1"):
        assert f"config.{line}" in lines


def test_an_argument_of_the_model_counts(outcomes):
    assert outcomes["wide"]["status"] == 0, outcomes["wide"]["stderr"]
    place = next(
        word.partition("=")[2] for word in outcomes["wide"]["command"] if "--workdir" in word
    )
    result = writers.read_json(pathlib.Path(place) / "result.json")
    assert result["upload_bytes"] == 4 * (64 * 7 + 7 + 7 * 10 + 10 + 1)
    assert writers.read_json(pathlib.Path(place) / "config.json")["model"]["widths"] == [7]


@pytest.mark.parametrize("residence", ["device", "host"])
def test_a_full_disk_gives_a_one_line_error(tmp_path, residence):
    """Simulated by a limit on the length of files."""
    words = [sys.executable, "experiments/train.py", QUICK, "--config.algorithm=ditto", "--quiet"]
    words += [f"--config.engine.residence={residence}", "--config.checkpoint_every=2"]
    words += ["--config.rounds=6", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # whose files are long, too
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; exec {shlex.join(words)}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr and str(tmp_path / "run") in done.stderr
