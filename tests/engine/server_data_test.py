"""Examples that the server holds are arguments of the programs; a method distils on them."""

import dataclasses

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core
from pfljax.algorithms import ALGORITHMS, Method, checked
from pfljax.algorithms.fedavg import fedavg
from pfljax.engine import mapping, programs, sampling
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.clients.host_programs import HostStore
from pfljax.engine.clients.store import Options
from pfljax.errors import UserError
from pfljax.training.run.runtime import CompilationCounter
from pfljax.training.study import experiment, placement, vectorized
from pfljax.training.study.config import default_config

RATE, BATCH, CLASSES = 0.5, 4, federation.NUM_CLASSES
ALL_CLIENTS = sampling.CohortPlan(num_clients=8, size=8)


@checked
def ensemble(task, local, *, server_data: core.ClientData | None = None) -> core.Algorithm:
    """FedAvg whose server distils the mean of the clients' logits on examples of its own."""
    average = fedavg(task, local)
    distilling = local._replace(optimizer=optax.sgd(RATE), batch_size=BATCH, shuffle=False)

    def client_update(server, client, data, context):
        output = average.client_update(server, client, data, context)
        trained = core.tree.add(server.params, core.mean(output.sum))
        return output._replace(each=trained)

    def server_update(server, uploads, cohort, context):
        server, present = average.server_update(server, uploads, cohort, context), cohort.ids >= 0

        def objective(params, batch, key):
            of_each = jax.lax.map(lambda one: task.predict(one, batch.inputs), uploads.each)
            present_logits = jnp.where(present[:, None, None], of_each, 0)
            targets = jax.nn.softmax(jnp.sum(present_logits, axis=0) / jnp.sum(present))
            losses = optax.softmax_cross_entropy(task.predict(params, batch.inputs), targets)
            return core.mean_over(losses, batch.mask)

        trained = core.train(objective, server.params, server_data, context, distilling, epochs=1)
        return server._replace(params=trained.params)

    return average._replace(client_update=client_update, server_update=server_update)


def make(frozen, values, server_data):
    task = federation.task()
    local = federation.local_training(shuffle=False)
    return programs.Method(ensemble(task, local, server_data=server_data), task)


def plain_round(params, data):
    """Returns the params after a round, client by client and batch by batch."""
    task, examples = federation.task(), jax.tree.map(jnp.asarray, federation.examples())
    sizes, models = federation.SIZES[:8], []
    for k in range(8):
        whole = examples.of_client(jnp.int32(k)).take(jnp.arange(federation.SIZES[k]))
        own = params
        for _ in range(2):
            for at in range(0, sizes[k], BATCH):
                batch = core.Batch(*(leaf[at : at + BATCH] for leaf in whole))
                slope = jax.grad(task.loss)(own, batch, jax.random.key(0))
                own = jax.tree.map(lambda p, g: p - 0.1 * g, own, slope)
        models.append(own)
    share = sizes / sizes.sum()
    params = jax.tree.map(lambda *own: sum(s * m for s, m in zip(share, own, strict=True)), *models)
    for at in range(0, len(data.targets), BATCH):
        inputs = data.inputs[at : at + BATCH]
        teacher = jax.nn.softmax(sum(task.predict(own, inputs) for own in models) / 8)

        def loss(params, inputs=inputs, teacher=teacher):
            return -jnp.mean(
                jnp.sum(teacher * jax.nn.log_softmax(task.predict(params, inputs)), axis=-1)
            )

        params = jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params))
    return params


def options(devices):
    return Options(
        plan=ALL_CLIENTS,
        clients_per_chunk=1,
        eval_clients_per_chunk=1,
        eval_batch_size=4,
        rounds_per_call=1,
        join="current",
        devices=devices,
    )


@pytest.mark.parametrize("residence", ["device", "host"])
def test_server_data_are_an_argument_of_the_programs(residence):
    devices, examples = jax.devices()[:2], federation.examples()
    inputs, others = (
        mapping.replicate(programs.Inputs(server_data=federation.server_data(seed)), devices)
        for seed in (1, 2)
    )
    if residence == "device":
        init = programs.init_program(make, devices=devices)
        rounds = programs.rounds_program(
            make, ALL_CLIENTS, clients_per_chunk=1, rounds_per_call=1, devices=devices
        )
        placed = mapping.replicate(examples, devices)
        begin = programs.Bound(init, inputs)
        runs = [programs.Bound(rounds, inputs)]
        runs.append(runs[0].with_fixed(others))
    else:
        placed = HostExamples(
            **{
                field.name: getattr(examples, field.name)
                for field in dataclasses.fields(examples)
                if field.name != "class_counts"
            },
            num_classes=CLASSES,
            class_counts=None,
        )
        stores = [HostStore(placed, options(devices)) for _ in range(2)]
        begin, *_ = stores[0].programs(make, inputs)
        runs = [
            store.programs(make, one).run_rounds
            for store, one in zip(stores, (inputs, others), strict=True)
        ]
    states = []
    for run, seed in zip(runs, (1, 2), strict=True):
        state = begin(placed, jax.random.key(0))
        first = jax.tree.map(np.asarray, state.server.params)
        state, _ = run(state, placed, np.int32(1), np.int32(1))
        states.append(jax.tree.map(federation.same_on_every_device, state.server.params))
        federation.assert_close(
            states[-1], plain_round(first, federation.server_data(seed)), tolerance=2e-6
        )
    assert federation.differ(*states)


@pytest.fixture
def registered(monkeypatch):
    row = Method(ensemble, "Ensemble", needs=frozenset({"classes", "server_data"}))
    monkeypatch.setitem(ALGORITHMS, "ensemble", row)


def config(**changes):
    made = default_config()
    settings = {
        "algorithm": "ensemble",
        "rounds": 1,
        "engine.devices": 1,
        "data.num_clients": 4,
        "data.server_fraction": 0.1,
    }
    made.model.widths = (4,)
    made.update_from_flattened_dict(settings | changes)
    return made


def one_round(built, key):
    state = built.programs.init(built.examples, key)
    return built.programs.run_rounds(state, built.examples, np.int32(1), np.int32(1))[0]


def test_a_config_gives_the_server_a_fraction_of_the_examples(registered):
    built = experiment.build(config())
    clients = sum(split.sizes.sum() for split in built.dataset[3:6])
    data = built.inputs.server_data
    assert (clients, data.size) == (1617, 180) and data.class_counts.sum() == 180
    assert np.all(np.abs(data.class_counts - 18) <= 1)  # Each label keeps its fraction.
    state = one_round(built, jax.random.key(0))
    assert not any(leaf.shape[:1] == (180,) for leaf in jax.tree.leaves(state))

    # Several seeds in one program have their own examples at the server.
    configs = [config(seed=seed, **{"data.seed": seed}) for seed in (0, 1)]
    datasets = [experiment.build_dataset(one) for one in configs]
    assert np.any(datasets[0].server.inputs != datasets[1].server.inputs)
    both = vectorized.build(configs, None, datasets)
    keys = jnp.stack([jax.random.key(seed) for seed in (0, 1)])
    shared = programs.unstack(one_round(both, keys), 1).server.params
    second = experiment.build(configs[1], datasets[1])
    alone = one_round(second, jax.random.key(1)).server.params
    federation.assert_close(shared, alone, tolerance=1e-5)

    # The programs of one seed serve another, as they do in a comparison.
    bounds = experiment.bounds_of(datasets)
    first = experiment.build(configs[0], datasets[0], bounds=bounds)
    one_round(first, jax.random.key(0))
    examples = placement.to_devices(datasets[1], first.devices, bounds)
    counter = CompilationCounter()
    moved = first.with_server_data(datasets[1])._replace(examples=examples)
    server = one_round(moved, jax.random.key(1)).server.params
    counter.close()
    assert counter.programs == 0
    federation.assert_close(server, alone, tolerance=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.server_fraction": 0.0}, "Ensemble needs examples at the server; set config.data"),
        ({"data.server_fraction": 1.0}, "data.server_fraction"),
        ({"data.server_name": "digit"}, "did you mean 'digits'?"),
        (
            {"data.server_name": "digits", "data.server_fraction": 0.0},
            "data.server_name is digits, and data.server_fraction is 0",
        ),
        ({"data.server_name": "synthetic"}, "have the form .* choose a data set of the same form"),
    ],
)
def test_server_data_that_cannot_be_used(registered, changes, message):
    with pytest.raises(UserError, match=message):
        experiment.build(config(**changes))


def test_another_data_set_of_the_same_form(registered):
    built = experiment.build(config(**{"data.server_name": "digits", "data.server_fraction": 1.0}))
    assert built.inputs.server_data.size == 1797


def test_a_factory_refuses_to_be_made_without_server_data(registered):
    with pytest.raises(UserError, match="^Ensemble needs examples at the server"):
        ALGORITHMS["ensemble"](federation.task(), federation.local_training())
