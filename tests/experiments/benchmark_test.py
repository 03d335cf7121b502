"""The benchmark: workloads of the published sizes, the arithmetic that it counts, its baselines."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from pfljax import models
from pfljax.errors import UserError
from pfljax.training.run import runtime
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
# As Python does for a script in these folders.
sys.path[:0] = [str(EXPERIMENTS), str(EXPERIMENTS / "peers")]
import jax_network  # noqa: E402
import peer  # noqa: E402
from benchmarking import adapters, baselines, measuring  # noqa: E402
from benchmarking.networks import NETWORKS, Layer, Network  # noqa: E402
from benchmarking.workloads import WORKLOADS, find, study, synthetic  # noqa: E402

# Clients, the cohort, the size of batches, and parameters, as the workloads' authors give them.
PUBLISHED = {
    "r1": (1000, 50, 10, 1_626_442),
    "r2": (3400, 10, 10, 1_206_590),
    "r3": (3400, 340, 20, 209_662),
    "r3-apfl": (3400, 340, 20, 209_662),
    "r3-ditto": (3400, 340, 20, 209_662),
    "r4-mlp": (20, 0, 10, 79_510),
    "r4-cnn": (20, 0, 10, 582_026),
    "r5": (500, 0, 10, 924_708),
    "r6": (1000, 10, 10, 7_850),
    "r7": (3400, 10, 20, 1_206_590),
    "r10": (100, 40, 10, 6_603_710),
    "r12": (1000, 50, 10, 1_626_442),
    "population": (1000, 100, 10, 79_510),
    "population-1000": (1000, 1000, 10, 79_510),
}
TOTALS = {"r1": 50_000, "r2": 671_585, "r4-mlp": 52_492, "r5": 45_000, "r6": 61_664}


def parameters_of(workload):
    layers = workload.network.layers(workload.shape, workload.num_classes)
    return sum((layer.inputs + 1) * layer.outputs for layer in layers)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_published_one(name):
    workload = find(name, 1000)
    given = len(workload.sizes), workload.cohort, workload.batch_size, parameters_of(workload)
    assert given == PUBLISHED[name]


@pytest.mark.parametrize("name", TOTALS)
def test_clients_have_as_many_examples_as_the_data_set(name):
    # Drawn sizes come near the number of examples in their data set.
    assert sum(WORKLOADS[name].sizes) == pytest.approx(TOTALS[name], rel=0.1)
    assert min(WORKLOADS[name].sizes) > 0


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_built_without_compiling(name):
    # Clients of a few examples take the place of the real ones, which fill half a gigabyte.
    few = find(name, 1000)
    few = few._replace(sizes=np.full(len(few.sizes), few.train_per_test, np.int32))
    dataset, engine = synthetic(few), config_lib.default_config().engine
    engine.clients_per_chunk = "1"  # which 'auto' would measure
    counter = runtime.CompilationCounter()
    built = experiment.build(study(few, engine), dataset)
    counter.close()
    assert counter.programs == 0
    parameters = jax.eval_shape(built.task.init, jax.eval_shape(jax.random.key, 0))
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == parameters_of(few)
    assert built.plan.size == (few.cohort or len(few.sizes))


def test_examples_have_the_shapes_and_sizes_of_the_workload():
    workload = WORKLOADS["r6"]
    dataset = synthetic(workload)
    assert dataset.train.sizes.tolist() == list(workload.sizes)
    assert dataset.test.sizes.tolist() == [size // 3 for size in workload.sizes]
    assert dataset.inputs.shape == (dataset.train.sizes.sum() + dataset.test.sizes.sum(), 28, 28, 1)
    ends = dataset.test.offsets + dataset.test.sizes
    np.testing.assert_array_equal(dataset.train.offsets[1:], ends[:-1])


# networks and arithmetic


def work_of(network, shape, num_classes, **changes):
    work = peer.Work(
        network.convolutions, network.widths, shape, num_classes, [4], 4, 0.1, [[0]], ""
    )
    return work._replace(**changes)


@pytest.mark.parametrize("name", ["emnist_dense", "simple_cnn", "leaf_cnn"])
def test_opponents_train_the_same_network(name):
    """The network of the baselines, with pfljax's weights, answers as pfljax's own."""
    network, shape, num_classes = NETWORKS[name], (12, 12, 1), 5
    arguments = network.config()
    ours = models.MODELS[arguments.pop("name")](shape, num_classes, **arguments)
    _, apply = jax_network.build_network(work_of(network, shape, num_classes))

    @jax.jit
    def answers(key):
        parameters, x = ours.init(key), jax.random.normal(key, (2, *shape))
        layers = [functools.reduce(dict.__getitem__, path, parameters) for path in ours.layers]
        return ours.head(parameters, ours.features(parameters, x)), apply(layers, x)

    expected, given = answers(jax.random.key(0))
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert np.std(given) > 1e-3


def test_layers_with_padding_and_pooling():
    network = Network("", ((3, 5, "SAME", True), (4, 3, "VALID", False)), (7,))
    layers = list(network.layers((8, 8, 2), 6))
    assert layers == [Layer(50, 3, 64), Layer(27, 4, 4), Layer(16, 7, 1), Layer(7, 6, 1)]


@pytest.mark.parametrize("name", ["emnist_dense", "simple_cnn"])
def test_arithmetic_is_what_xla_counts(name):
    network, shape, num_classes, batch = NETWORKS[name], (12, 12, 3), 5, 4
    init, apply = jax_network.build_network(work_of(network, shape, num_classes))
    gradient = jax.jit(jax.grad(lambda parameters, x: jnp.sum(apply(parameters, x) ** 2)))
    args = jax.eval_shape(init, jax.random.key(0)), jax.ShapeDtypeStruct((batch, *shape), "float32")
    counted = gradient.lower(*args).compile().cost_analysis()["flops"]
    # XLA counts additions of biases, ReLU and the like, too.
    flop = batch * network.flop_per_example(shape, num_classes)
    assert flop < counted < 1.1 * flop


def test_empty_rows_are_those_of_last_batches():
    assert measuring.empty_rows(WORKLOADS["r1"]) == 0
    workload = WORKLOADS["r1"]._replace(sizes=[1, 10, 11], batch_size=10)
    assert measuring.empty_rows(workload) == pytest.approx(1 - 22 / 40)


def test_the_median_rate_is_that_of_rounds():
    assert measuring.median_rate([10, 20, 90], [1, 4, 3]) == 10
    assert measuring.spread([3.0, 1.0, 5.0]) == {"median": 3.0, "min": 1.0, "max": 5.0}
    assert measuring.spread([]) is None


# baselines


def test_the_fastest_setting_of_an_opponent_counts(monkeypatch):
    works = []

    def answer(name, work, python):
        works.append(work)
        seconds = [1.0, 3.0] if work["setting"] == "pmap" else [2.0, 4.0]
        return {"version": "1", "seconds": seconds, "processor_seconds": []}

    monkeypatch.setattr(baselines, "answer", answer)
    workload = WORKLOADS["r4-mlp"]._replace(sizes=[10, 20, 30], cohort=0)
    figures = baselines.run("fedjax", workload, 2, "python")
    assert figures["setting"] == "pmap" and "jit" in figures["settings"]
    assert figures["seconds_per_round"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert figures["examples_per_second"] == pytest.approx((60 + 20) / 2)
    # One round more, which warms up; the work goes through JSON.
    assert peer.Work(**json.loads(json.dumps(works[0]))).cohorts == [[0, 1, 2]] * 3


def test_cohorts_of_a_baseline_are_drawn_without_replacement(monkeypatch):
    works = []

    def answer(name, work, python):
        works.append(work)
        return {"version": "1", "seconds": [1.0] * 4, "processor_seconds": [1.0] * 4}

    monkeypatch.setattr(baselines, "answer", answer)
    baselines.run("fedjax", WORKLOADS["r6"], 4, "python")
    assert [len(set(cohort)) for cohort in works[0]["cohorts"]] == [10] * 5
    assert works[0]["cohorts"] == works[1]["cohorts"]
    assert works[0]["cohorts"][0] != works[0]["cohorts"][1]


def test_an_opponent_does_not_inherit_what_pfljax_sets_for_itself(monkeypatch):
    environments = []

    def run(command, *, env, **_):
        environments.append(env)
        said = json.dumps({"version": "1", "seconds": [1.0], "processor_seconds": []})
        return subprocess.CompletedProcess(command, 0, stdout=said, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("NPROC", "7")
    baselines.run("fedjax", WORKLOADS["r6"], 1, "python")
    assert [env.get("NPROC") for env in environments] == [None, "1", "1"]


def test_a_baseline_that_fails_is_reported():
    workload = WORKLOADS["r1"]._replace(sizes=[10] * 50)
    with pytest.raises(UserError, match="baseline drjax with 'one device' did not run: .*drjax"):
        baselines.run("drjax", workload, 1, sys.executable)


PRETENDER = """
import pathlib, sys
import numpy as np
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for part, size in (("train", 6), ("test", 2)):
    data = np.load(pathlib.Path("..", "dataset", args["-data"], part, "0.npz"), allow_pickle=True)
    data = data["data"].tolist()
    assert data["x"].shape == (size, 1, 28, 28) and data["y"].shape == (size,), data["x"].shape
assert (args["-m"], args["-nc"], args["-lbs"], args["-dev"]) == ("DNN", "2", "10", "cpu")
for number in range(int(args["-gr"]) + 1):
    seconds = (9.0 if number == 0 else 0.5) + (0.25 if args["-eg"] == "1" else 0)
    print("-" * 25, "time cost", "-" * 25, seconds)
"""


def test_a_program_in_a_checkout_is_given_its_files_and_read(tmp_path):
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "main.py").write_text(PRETENDER)
    work = work_of(NETWORKS["mlp"], (28, 28, 1), 10, sizes=[6, 9], cohorts=[[0, 1]] * 3)
    work = work._replace(test_sizes=[2, 3], checkout=str(tmp_path), batch_size=10)._asdict()

    def answer(**changes):
        done = subprocess.run(
            [sys.executable, EXPERIMENTS / "peers" / "pfllib_fedavg.py"],
            input=json.dumps(work | changes),
            capture_output=True,
            text=True,
        )
        return done.stderr if done.returncode else json.loads(done.stdout)

    found = answer()
    assert (found["seconds"], found["evaluation_seconds"]) == ([0.5, 0.5], [0.25, 0.25])
    assert "use a workload with full participation" in answer(cohorts=[[0], [1]])
    assert "no such network" in answer(widths=[7])
    (tmp_path / "system" / "main.py").write_text("raise SystemExit('no torch')")
    assert "PFLlib stopped: no torch" in answer()


def test_an_opponent_trains_and_answers():
    pytest.importorskip("torch")
    work = work_of(NETWORKS["cnn"], (16, 16, 1), 5, sizes=[6, 9], cohorts=[[0, 1], [1, 0], [1]])
    adapter = EXPERIMENTS / "peers" / "eager_pytorch.py"
    done = subprocess.run(
        [sys.executable, str(adapter)],
        input=json.dumps(work._replace(setting="one thread")._asdict()),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["seconds"]) == len(answer["processor_seconds"]) == 2


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_baseline_has_a_file(name):
    assert (baselines._PEERS / baselines.BASELINES[name].adapter).is_file()


def test_users_of_heads_are_trained_and_answered(monkeypatch):
    monkeypatch.setattr(adapters, "STEPS", 2)
    engine = ml_collections.ConfigDict({"devices": 2})
    found = adapters.measure("heads", 4, engine, rounds=1)
    assert (found["users"], found["parameters_of_a_user"]) == (4, 257 * 2)
    assert found["milliseconds_per_user_step"] > 0
    assert min(found["requests_per_second"].values()) > 0


def test_activations_of_all_texts_are_those_of_the_lower_layers():
    data = adapters.dataset_of("last", users=2)
    of_ids = adapters.dataset_of("full", users=2)
    assert data.items.shape == (adapters.TEXTS, adapters.LENGTH, adapters.WIDTH)
    np.testing.assert_array_equal(np.any(data.items != 0, axis=-1), of_ids.items != 0)


@pytest.mark.parametrize("name", ["peft", "torch_heads"])
def test_users_of_a_baseline_are_trained_in_turn(name, monkeypatch):
    pytest.importorskip(baselines.BASELINES[name].package)
    small = {"STEPS": 2, "PEER_USERS": 2, "TEXTS": 32}
    for key, value in small.items():
        monkeypatch.setattr(adapters, key, value)
    found = adapters.run_baseline(name, 1, sys.executable)
    assert found["users"] == 2 and set(found["settings"]) == set(baselines.BASELINES[name].settings)


def test_examples_of_a_baseline_are_those_of_clients_that_take_part():
    work = work_of(NETWORKS["mlp"], (4, 4, 1), 5, sizes=[3, 2, 1], cohorts=[[2], [0]])
    clients = peer.examples(work)
    assert {client: len(labels) for client, (_, labels) in clients.items()} == {0: 3, 2: 1}
    images, labels = clients[0]
    assert images.shape == (3, 4, 4, 1) and images.dtype == np.float32
    assert set(labels.tolist()) <= set(range(5))
