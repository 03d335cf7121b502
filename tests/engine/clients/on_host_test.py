"""A population on the host trains and is scored as the same population on the devices."""

import functools
import time

import federation
import jax
import numpy as np
import pytest

from pfljax.data import FederatedDataset, Split
from pfljax.engine import programs, sampling
from pfljax.engine.clients import mmap_rows
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.clients.host_programs import HostStore
from pfljax.engine.clients.store import Options

ROUNDS = 5
METHODS = ["fedavg", "fedper", "ditto", "fedfomo"]


def on_host(**changes):
    """The tiny federation, stored on the host."""
    given = federation.examples()
    return HostExamples(
        inputs=given.inputs,
        targets=given.targets,
        offsets=given.offsets,
        sizes=given.sizes,
        num_classes=federation.NUM_CLASSES,
        max_train_size=given.max_train_size,
        max_eval_size=given.max_eval_size,
        num_participants=given.num_participants,
        class_counts=lambda: given.class_counts,
    )._replace(**changes)


def hosted(name, devices, chunk, plan=federation.PLAN, examples=None, eval_ids=None):
    """Returns clients on the host and their three programs."""
    options = Options(
        plan=plan,
        clients_per_chunk=chunk,
        eval_clients_per_chunk=chunk,
        eval_batch_size=4,
        rounds_per_call=ROUNDS,
        join="current",
        devices=jax.devices()[:devices],
    )
    clients = HostStore(examples or on_host(), options, eval_ids=eval_ids)
    make = programs.always(federation.make(name), federation.task_for(name))
    return clients, *clients.programs(make, programs.Inputs())


def run(name, devices, chunk, calls=(2, 3), plan=federation.PLAN):
    population, start, rounds, evaluate = hosted(name, devices, chunk, plan)
    examples, history = population.examples, []
    state = start(examples, jax.random.key(0))
    untrained = evaluate(state, examples, np.int32(ROUNDS))
    for now in calls:
        state, metrics = rounds(state, examples, np.int32(ROUNDS), np.int32(now))
        history.append(metrics)
    metrics = jax.tree.map(lambda *leaves: np.concatenate(leaves), *history)
    scores = evaluate(state, examples, np.int32(ROUNDS))
    table = state.clients[0]
    clients = population.file.read(table, np.arange(examples.num_clients))
    server = jax.tree.map(federation.same_on_every_device, state.server)
    outcome = federation.Outcome(server, clients, metrics, lambda: untrained, lambda: scores)
    return outcome, table


@functools.cache
def on_devices(name):
    algorithm, task = federation.make(name), federation.task_for(name)
    return federation.run(algorithm, rounds=ROUNDS, score=task)


@pytest.mark.parametrize("devices, chunk", [(1, 1), (2, 2)])
@pytest.mark.parametrize("name", METHODS)
def test_results_are_those_of_a_population_on_the_devices(name, devices, chunk):
    """Five of eight clients take part in each round, so that consecutive cohorts overlap."""
    outcome, table = run(name, devices, chunk)
    expected = on_devices(name)
    federation.assert_close(outcome.server, expected.server)
    known = table >= 0
    if jax.tree.leaves(outcome.clients):
        assert known.sum() >= 5 and not known[8], "the unseen client never takes part"
    federation.assert_close(
        *(jax.tree.map(lambda leaf: leaf[known], side.clients) for side in (outcome, expected))
    )
    # Clients that never took part are scored too, with the state that they would begin with.
    federation.assert_close(outcome.untrained_scores, expected.untrained_scores, tolerance=1e-5)
    federation.assert_close(outcome.scores, expected.scores, tolerance=1e-5)
    for metric in set(expected.metrics) - {"slots"}:
        federation.assert_close(outcome.metrics[metric], expected.metrics[metric])


@pytest.mark.parametrize("size", [2, 5])
def test_a_row_is_stored_before_it_is_fetched_again(size, monkeypatch):
    """Storing is made slow: fetching that did not wait for it would read what was before."""
    plan = sampling.CohortPlan(num_clients=8, size=size)
    quick, _ = run("local", 2, 1, calls=(ROUNDS,), plan=plan)
    write = mmap_rows.RowFile.write

    def slow(self, table, ids, states):
        time.sleep(0.05)
        write(self, table, ids, states)

    monkeypatch.setattr(mmap_rows.RowFile, "write", slow)
    late, _ = run("local", 2, 1, calls=(ROUNDS,), plan=plan)
    jax.tree.map(np.testing.assert_array_equal, quick.clients, late.clients)
    one_by_one, _ = run("local", 2, 1, calls=(1,) * ROUNDS, plan=plan)
    jax.tree.map(np.testing.assert_array_equal, one_by_one.clients, late.clients)


def test_an_error_of_the_hosts_thread_ends_the_run(monkeypatch):
    population, start, rounds, _ = hosted("local", 1, 1)
    state = start(population.examples, jax.random.key(0))
    rounds.compile(state, population.examples, np.int32(3), np.int32(3))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(population.file, "write", full)
    with pytest.raises(OSError, match="no space left"):
        rounds(state, population.examples, np.int32(3), np.int32(3))


def million(count):
    """Many clients who share the tiny federation's rows."""
    ids = np.arange(count) % 8
    given = federation.examples()
    never = np.broadcast_to(np.int32(0), count)
    return on_host(
        offsets={name: given.offsets["train"][ids] for name in given.offsets},
        sizes={"train": given.sizes["train"][ids], "validation": never, "test": never + 1},
        num_participants=count,
        class_counts=lambda: pytest.fail("the labels of all clients are not needed"),
    )


def test_what_the_devices_need_does_not_depend_on_the_population():
    needs = []
    for count in (1_000, 1_000_000):
        plan = sampling.CohortPlan(num_clients=count, size=4)
        ends = np.array([0, count - 1])
        population, start, rounds, evaluate = hosted("fedper", 2, 1, plan, million(count), ends)
        state = start(population.examples, jax.random.key(0))
        args = (population.examples, np.int32(4))
        state, _ = rounds(state, *args, np.int32(4))
        scores = evaluate(state, *args)["personal"]["test"]
        assert scores["loss"].shape == (2,) and np.all(scores["loss"] > 0)
        needs.append([rounds.device_bytes, evaluate.device_bytes])
        assert len(population.file._bytes) <= 1024, "a client takes a row when it takes part"
    assert needs[0] == needs[1]


def test_the_capacity_holds_any_shard():
    examples = on_host()
    assert examples.capacity(2, ("train",)) == 16 + 11
    assert examples.capacity(100, ("train", "test")) == 2 * federation.SIZES.sum()


def test_the_examples_of_a_shard_are_those_of_its_clients():
    ids, given = np.array([4, -1, 0]), federation.examples()
    share = on_host().shard(ids, ("train", "test"), capacity=60)
    for place, client in enumerate(ids):
        for split in ("train", "validation", "test"):
            size = 0 if client < 0 or split == "validation" else federation.SIZES[client]
            assert share.sizes[split][place] == size
            begin, home = share.offsets[split][place], given.offsets["train"][client]
            np.testing.assert_array_equal(
                share.inputs[begin : begin + size], given.inputs[home : home + size]
            )
        counts = 0 if client < 0 else given.class_counts[client]
        np.testing.assert_array_equal(share.class_counts[place], counts)


def test_the_tokens_of_a_shard_are_counted_as_on_the_devices():
    """Targets of next_token have two axes; padding, token 0, is counted like any other."""
    draw = np.random.default_rng(0)
    rows = len(federation.examples().targets)
    tokens = draw.integers(0, federation.NUM_CLASSES, (rows, 5)).astype(np.int32)
    tokens[:, 3:] = 0
    examples = on_host(targets=tokens)
    share = examples.shard(np.array([2, -1, 0]), ("train", "test"), capacity=60)
    parts = [
        Split(examples.offsets[name], examples.sizes[name])
        for name in ("train", "validation", "test")
    ]
    dataset = FederatedDataset("tokens", examples.inputs, tokens, *parts, federation.NUM_CLASSES)
    counts = dataset.class_counts()
    np.testing.assert_array_equal(share.class_counts, [counts[2], 0 * counts[2], counts[0]])
    assert counts[2, 0] >= 2 * examples.sizes["train"][2]
