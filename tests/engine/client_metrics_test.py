"""Metrics of a client's whole outputs: collected in the loop over batches, for every engine."""

import dataclasses
import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import groups, mapping, programs, sampling
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.clients.host_programs import HostStore
from pfljax.engine.clients.store import Options
from pfljax.metrics import METRICS


@functools.cache
def examples():
    """The tiny federation, each client's rows cut in three; some have no test examples."""
    whole = federation.examples()
    start, size = whole.offsets["train"], whole.sizes["train"]
    train = np.maximum(1, size // 4).astype(np.int32)
    validation = ((size - train) // 3).astype(np.int32)
    test = size - train - validation
    assert test.min() == 0 and test.max() > 4, "no client without examples, or with two batches"
    return dataclasses.replace(
        whole,
        offsets={"train": start, "validation": start + train, "test": start + train + validation},
        sizes={"train": train, "validation": validation, "test": test},
        max_train_size=int(train.max()),
        max_eval_size=int(max(test.max(), validation.max())),
    )


def in_order(outputs, targets, mask):
    """A number that depends on the order of the examples."""
    weights = jnp.arange(1, len(mask) + 1) * mask
    return jnp.sum(weights * (1 + targets)) / jnp.sum(mask)


METRICS_HERE = {
    "nll": METRICS["nll"].compute,
    "balanced_accuracy": METRICS["balanced_accuracy"].compute,
    "in_order": in_order,
}


def measured(task):
    return task._replace(client_metrics=METRICS_HERE)


@functools.cache
def outcome(name, devices, chunk=2, ids=None):
    """Scores with the metrics, of clients with zero to three batches."""
    return federation.run(
        federation.make(name),
        data=examples(),
        devices=devices,
        chunk=chunk,
        score=measured(federation.task_for(name)),
        eval_ids=None if ids is None else np.array(ids),
    ).scores


def assert_as_the_sums(scores, sizes, targets_of):
    """The mean loss from whole outputs is that from sums; order and number of rows are right."""
    for splits in scores.values():
        for split, found in splits.items():
            size = sizes[split]
            some = size > 0
            np.testing.assert_allclose(
                found["nll"][some], found["loss"][some] / size[some], rtol=2e-5, atol=1e-6
            )
            assert np.all(np.isnan(found["nll"][~some]))
            for client in np.flatnonzero(some):
                targets = targets_of(split, client)
                weights = np.arange(1, len(targets) + 1)
                expected = np.sum(weights * (1 + targets)) / len(targets)
                np.testing.assert_allclose(found["in_order"][client], expected, rtol=1e-6)


def targets_of(data):
    def of_client(split, client):
        begin, size = data.offsets[split][client], data.sizes[split][client]
        return data.targets[begin : begin + size]

    return of_client


@pytest.mark.parametrize(
    "name, devices", [("ditto", 1), ("ditto", 3), ("fedem", 1), ("fedproto", 1)]
)
def test_outputs_are_those_of_the_sums(name, devices):
    """For held-out clients, clients without examples, and methods with a `predict` of their own."""
    scores = outcome(name, devices)
    assert ("global" in scores) == (name == "ditto")
    assert_as_the_sums(scores, examples().sizes, targets_of(examples()))


def test_only_personalized_models_use_the_predict_of_the_method():
    """FedAvg's two models are one, so that only the outputs can differ."""

    def upside_down(model, inputs, key):
        return -federation.task().predict(model, inputs)

    algorithm = federation.make("fedavg")._replace(predict=upside_down)
    task = measured(federation.task())
    scores = federation.run(algorithm, data=examples(), rounds=1, score=task).scores
    assert_as_the_sums(scores, examples().sizes, targets_of(examples()))
    some = examples().sizes["test"] > 0
    personal, common = (scores[model]["test"]["nll"][some] for model in ("personal", "global"))
    assert np.all(np.abs(personal - common) > 1e-3)


def test_chosen_clients():
    ids = (7, 2, 8)
    some = outcome("ditto", 1, ids=ids)
    whole = outcome("ditto", 1)
    wanted = jax.tree.map(lambda leaf: leaf[np.array(ids)], whole)
    federation.assert_close(some, wanted)


def test_a_population_on_the_host():
    data, devices = examples(), jax.devices()[:2]
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    fields |= {"num_classes": federation.NUM_CLASSES, "class_counts": None}
    host = HostExamples(**fields)
    options = Options(
        plan=federation.PLAN,
        clients_per_chunk=2,
        eval_clients_per_chunk=2,
        eval_batch_size=4,
        rounds_per_call=1,
        join="current",
        devices=devices,
    )
    make = programs.always(federation.make("ditto"), measured(federation.task()))
    inputs = mapping.replicate(programs.Inputs(), devices)
    start, _, evaluate = HostStore(host, options).programs(make, inputs)
    scores = evaluate(start(host, jax.random.key(0)), host, np.int32(3))
    assert_as_the_sums(scores, data.sizes, targets_of(data))


def test_groups():
    methods = []
    for widths in ((4,), (3, 4)):
        network = models.mlp((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=widths)
        task = tasks.classification(network, num_classes=federation.NUM_CLASSES)
        algorithm = ALGORITHMS["fedproto"](task, federation.local_training())
        methods.append(programs.Method(algorithm, measured(task)))
    made, data = groups.Groups(tuple(methods)), federation.examples()
    count = len(federation.SIZES)
    plan = sampling.CohortPlan(num_clients=count, size=count)
    built = federation.programs(lambda *inputs: made, plan=plan, rounds=1, num_groups=2)
    scores = jax.tree.map(np.asarray, built.run(data).scores)
    assert_as_the_sums(scores, data.sizes, targets_of(data))


def lowered(name, task):
    """The evaluation of a method before XLA compiles it, without names of source lines."""
    make, devices = programs.always(federation.make(name), task), jax.devices()[:1]
    program = programs.evaluation_program(make, batch_size=4, clients_per_chunk=2, devices=devices)
    placed, inputs = mapping.replicate((examples(), programs.Inputs()), devices)
    state = programs.init_program(make, devices=devices)(placed, jax.random.key(0), inputs)
    return program.lower(state, placed, np.int32(1), inputs).as_text()


def test_there_is_one_forward_pass_and_no_buffer_without_such_metrics():
    """Outputs are kept, not computed again, and only where a metric reads them."""
    task = federation.task()
    without, with_metrics = lowered("ditto", task), lowered("ditto", measured(task))
    assert without.count("stablehlo.dot_general") == with_metrics.count("stablehlo.dot_general")
    assert without.count("stablehlo.dot_general") > 2
    capacity = -(-examples().max_eval_size // 4) * 4
    buffer = f"x{capacity}x{federation.NUM_CLASSES}xf32>"
    assert buffer in with_metrics and buffer not in without


def test_a_view_knows_the_largest_size_of_its_split():
    data = dataclasses.replace(examples(), max_train_size=5, max_eval_size=7)
    sizes = [data.of_client(jnp.int32(0), split).max_size for split in data.sizes]
    assert dict(zip(data.sizes, sizes, strict=True)) == {"train": 5, "validation": 7, "test": 7}
