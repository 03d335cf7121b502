"""A method, a network, a data set and a metric of the user, in a file outside the package."""

import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import pfljax

ROOT = pathlib.Path(__file__).parents[2]
MINE = '''
import numpy as np
import pfljax
from pfljax.algorithms.fedavg import fedavg
from pfljax.core import tree
from pfljax.models import mlp


@pfljax.register_method
def my_fedavg(task, local, *, fraction: float = 0.5):
    """FedAvg whose clients upload a fraction of their change."""
    average = fedavg(task, local)

    def client_update(server, client, data, context):
        output = average.client_update(server, client, data, context)
        total = output.sum._replace(value=tree.scale(fraction, output.sum.value))
        return output._replace(sum=total)

    return average._replace(client_update=client_update)


@pfljax.register_model
def my_mlp(shape, outputs, width: int = 4):
    return mlp(shape, outputs, widths=(width,))


@pfljax.register_dataset
def my_data(dir, *, size: int = 90):
    draws = np.random.default_rng(0).normal(size=(size, 3))
    return pfljax.pool_from_arrays(draws, draws[:, 0] > 0, name="mine")
'''


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def test_from_python(mine):
    pfljax.import_file(mine)
    data = pfljax.load_dataset("my_data", partition="iid", num_clients=3, options={"size": 60})
    assert len(data.targets) == 60
    run = pfljax.fit(
        "my_fedavg", data, rounds=2, fraction=1.0, model={"name": "my_mlp", "width": 5}
    )
    whole = pfljax.fit("fedavg", data, rounds=2, model={"name": "my_mlp", "width": 5})
    half = pfljax.fit("my_fedavg", data, rounds=2, model={"name": "my_mlp", "width": 5})
    inputs = data.inputs[:5]
    np.testing.assert_array_equal(run.client(0).outputs(inputs), whole.client(0).outputs(inputs))
    assert not np.array_equal(half.client(0).outputs(inputs), whole.client(0).outputs(inputs))
    assert run.client(0).params["head"]["kernel"].shape == (5, 2)


def test_factories_without_a_file():
    from pfljax.algorithms.fedprox import fedprox
    from pfljax.models import mlp

    def twice(task, local, *, mu: float = 0.1):
        return fedprox(task, local, mu=2 * mu)

    def small(shape, outputs, width: int = 3):
        return mlp(shape, outputs, widths=(width,))

    run = pfljax.fit(twice, "digits", rounds=1, model=small, mu=0.2)
    assert run.result["algorithm"] == "twice" and run.result["model"] == "small"
    assert run.result["hyperparameters"] == {"mu": 0.2}
    again = pfljax.fit(twice, "digits", rounds=1, model=small, mu=0.2)  # registered already
    assert again.result["global_accuracy"] == run.result["global_accuracy"]


def test_from_the_command_line(mine, tmp_path):
    """Also the file of a config, which the wheel contains, by its name."""
    common = ["--config=quickstart", f"--import={mine}", "--quiet"]
    command = [sys.executable, "-m", "pfljax", "train", *common]
    subprocess.run(
        [
            *command,
            f"--workdir={tmp_path / 'run'}",
            "--config.algorithm=my_fedavg",
            "--config.hparams.my_fedavg.fraction=0.9",
            "--config.data.name=my_data",
            "--config.data.options.my_data.size=60",
            "--config.data.num_clients=3",
            "--config.data.partition=iid",
            "--config.model.name=my_mlp",
            "--config.model.width=6",
            "--config.rounds=2",
        ],
        check=True,
        cwd=tmp_path,
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["algorithm"], result["dataset"]) == ("my_fedavg", "mine")
    # Opening the run imports the file that its config names.
    run = pfljax.open_run(tmp_path / "run")
    assert run.client(1).params["head"]["kernel"].shape == (6, 2)


def test_contract_tests_take_the_method(mine):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", f"--import-file={mine}"]
    tests = ["tests/algorithms/contract_test.py", "-k", "my_fedavg"]
    done = subprocess.run([*command, *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and "no tests ran" not in done.stdout


@pytest.mark.parametrize(
    "code, message",
    [
        ("1 +", "mine.py cannot be imported: SyntaxError in line 1"),
        ("x = 1\n1 / 0", "mine.py cannot be imported: ZeroDivisionError in line 2"),
        ("import nothing_of_this_name", "No module named"),
        (
            "import pfljax\n@pfljax.register_method\ndef ditto(task, local): ...",
            "has a method 'ditto' already",
        ),
        (
            "import pfljax\n@pfljax.register_method\ndef mine(task, local, *, rounds=1): ...",
            "hyper-parameter 'rounds', which is a key of all configs",
        ),
        (
            "import pfljax\n@pfljax.register_method\ndef mine(task, local, *, f=print): ...",
            "no config can set f",
        ),
        ("import pfljax\n@pfljax.register_method\ndef mine(model): ...", "must be a function"),
        ("import pfljax\n@pfljax.register_model\ndef mlp(shape, outputs): ...", "network 'mlp'"),
        ("import pfljax\n@pfljax.register_dataset\ndef digits(dir): ...", "data set 'digits'"),
        (
            "import pfljax\npfljax.register_model(lambda s, o: 0, name='a b')",
            "letters, digits and underscores",
        ),
    ],
)
def test_files_that_are_refused(mine, code, message):
    mine.write_text(textwrap.dedent(code))
    with pytest.raises(pfljax.UserError, match=message):
        pfljax.import_file(mine)


def test_a_cell_of_a_notebook_can_run_twice():
    from pfljax.algorithms.fedprox import fedprox

    for factor in (1.0, 2.0):

        @pfljax.register_method
        def scaled(task, local, *, mu: float = 0.1, factor=factor):
            return fedprox(task, local, mu=factor * mu)

    assert pfljax.default_config().hparams.scaled.factor == 2.0
