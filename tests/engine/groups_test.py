"""Groups of clients with models of different architectures in one run."""

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import evaluate, groups, mapping, programs, sampling
from pfljax.errors import UserError
from pfljax.models import layers

ROUNDS = 2
EVERY_ROUND = sampling.CohortPlan(num_clients=8, size=8)

# The methods that clients with different architectures can use.
METHODS = (
    *("local", "fedproto", "fd", "fml", "fedkd", "lg_fedavg", "fedgh", "fedpcl"),
    *("fedper", "fedmd"),
)


def task_of(network):
    return tasks.classification(network, num_classes=federation.NUM_CLASSES)


def mlp(*widths):
    return models.mlp((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=widths)


class DeepHead(nn.Module):
    """A head with a hidden layer."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(layers.Dense(self.width)(x))
        return layers.Dense(federation.NUM_CLASSES)(x)


class Body(nn.Module):
    """A body with one layer."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(layers.Dense(4)(x))


HEADS = layers.Dense(federation.NUM_CLASSES), DeepHead(6), DeepHead(5)
ONE_BODY = [models.from_flax(Body(), head, (federation.NUM_FEATURES,)) for head in HEADS]
ONE_WIDTH = [mlp(4), mlp(6, 4), mlp(5, 5, 4)]
# Networks without a common array, and the network that clients exchange beside them.
DIFFERENT = [mlp(4), mlp(6), mlp(5, 7)]
SHARED = {"fml": "meme", "fedkd": "mentee"}


def networks_of(name):
    """Three networks with which the clients of a method have something to exchange."""
    if name == "fedper":
        return ONE_BODY
    return DIFFERENT if name in (*SHARED, "local", "fd", "fedmd") else ONE_WIDTH


def method(name, network, *, exchanged=False):
    """A method with a network; `exchanged` names the network that clients exchange beside it."""
    task = task_of(network)
    arguments = federation.held_by_the_server(name)
    if exchanged:
        arguments[SHARED[name]] = task_of(mlp(3))
    algorithm = ALGORITHMS[name](task, federation.local_training(), **arguments)
    return programs.Method(algorithm, task)


def run(name, networks, *, data=None, **options):
    """Runs a method with a network for each group."""
    exchanged = name in SHARED and networks is not None and len(set(map(id, networks))) > 1
    made = groups.Groups(tuple(method(name, one, exchanged=exchanged) for one in networks))
    options = {"plan": EVERY_ROUND, "rounds": ROUNDS, "num_groups": len(networks), **options}
    return federation.programs(lambda *inputs: made, **options).run(data or federation.examples())


def shared_paths(name, network, *, exchanged=False):
    algorithm = method(name, network, exchanged=exchanged).algorithm
    examples = federation.examples()
    found = groups.exchanged(algorithm, examples.population(), examples.of_client(jnp.int32(0)))
    return set(found.shared)


def arrays(server):
    """Returns the arrays of a server's state by their paths."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(server)
    }


# A prototype and server data, an exchange and a verb more than the others have.
FEW = ("fedproto", "fedmd", "fedcac", "mime")


def others(*cases):
    """Returns the cases of other methods, which are slow tests."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("name", [*FEW, *others(*((name,) for name in METHODS if name not in FEW))])
def test_groups_of_one_architecture_are_one_federation(name):
    """Cohorts, sums, exchange and evaluation are the same, those of a held-out client too."""
    network = mlp(4)
    options = {"rounds": ROUNDS}
    together = run(name, [network, network], chunk=2, plan=federation.PLAN, **options)
    made = method(name, network)
    alone = federation.run(made.algorithm, score=made.task, plan=federation.PLAN, **options)
    each = [
        jax.tree.map(lambda leaf, start=start: leaf[start::2], alone.clients) for start in (0, 1)
    ]
    federation.assert_close(together.clients, tuple(each))
    for server in together.server:
        federation.assert_close(server, alone.server)
    federation.assert_close(together.scores, alone.scores, tolerance=1e-5)
    assert set(together.metrics) == set(alone.metrics)
    for metric in set(alone.metrics) - {"slots"}:
        federation.assert_close(together.metrics[metric], alone.metrics[metric])


@pytest.mark.parametrize(
    "name, count",
    [
        *(("fedproto", 3), ("fedkd", 3), ("fedper", 3), ("fml", 2)),
        *others(*((name, 3) for name in METHODS if name not in ("fedproto", "fedkd", "fedper"))),
        *others(("fedproto", 2), ("fedper", 2)),
    ],
)
def test_all_groups_train_and_share_what_they_exchange(name, count):
    networks = networks_of(name)[:count]
    after = run(name, networks)
    shapes = [jax.tree.map(jnp.shape, own) for own in after.clients]
    assert all(one != shapes[0] for one in shapes[1:]), "each group has a different model"
    assert np.all(after.metrics["cohort"] == 8) and np.all(after.metrics["not_finite"] == -2)
    shared = shared_paths(name, networks[0], exchanged=name in SHARED)
    assert bool(shared) == (name != "local")
    first, *others = map(arrays, after.server)
    for other in others:
        for path in shared:
            np.testing.assert_array_equal(first[path], other[path])
    trained, untrained = (
        scores["personal"]["test"]["loss"] for scores in (after.scores, after.untrained_scores)
    )
    assert trained.shape == (9,)
    for number in range(count):
        assert trained[:8][number::count].sum() < untrained[:8][number::count].sum()


@pytest.mark.parametrize("changed", [0, 1])
def test_the_clients_of_each_group_contribute(changed):
    networks = [mlp(4), mlp(6, 4)]
    before = run("fedproto", networks).server[0].prototypes.means
    networks[changed] = mlp(7, 4)
    after = run("fedproto", networks).server[0].prototypes.means
    assert federation.differ(before, after)


def test_initial_params_that_the_server_has_trained_differ():
    """FedMD's server trains a model for each group; arrays of equal shape are not shared."""
    both = run("fedmd", [mlp(4), mlp(6, 4)], rounds=1).server
    alone = federation.run(method("fedmd", mlp(6, 4)).algorithm, rounds=1).server
    federation.assert_close(both[1].initial_params, alone.initial_params)
    assert federation.differ(*(server.initial_params["head"] for server in both))


def test_devices_and_chunks_change_nothing():
    plan = sampling.CohortPlan(num_clients=8, size=5)
    one = run("fedproto", ONE_WIDTH, plan=plan)
    other = run("fedproto", ONE_WIDTH, plan=plan, devices=3, chunk=4)
    federation.assert_close(one.clients, other.clients)
    federation.assert_close(one.scores, other.scores, tolerance=1e-5)


def test_some_clients_are_evaluated_in_the_given_order():
    whole = run("fedproto", ONE_WIDTH, devices=2)
    ids = np.array([7, 4, 0, 3])  # none of the third group
    some = run("fedproto", ONE_WIDTH, devices=2, eval_ids=ids)
    federation.assert_close(
        some.scores, jax.tree.map(lambda leaf: leaf[ids], whole.scores), tolerance=1e-5
    )


def test_deployed_models_are_those_of_the_group():
    made = groups.Groups(tuple(method("fedproto", one) for one in ONE_WIDTH))
    examples, devices = federation.examples(), jax.devices()[:1]
    state = programs.init_program(lambda *_: made, devices=devices)(
        mapping.replicate(examples, devices), jax.random.key(0), programs.Inputs()
    )
    deploy = programs.evaluation_program(
        lambda *_: made,
        batch_size=4,
        clients_per_chunk=1,
        eval_ids=np.array([8, 2]),
        of_client=evaluate.deployed,
        devices=devices,
    )
    found = deploy(state, mapping.replicate(examples, devices), np.int32(1), programs.Inputs())
    assert found["personal"]["model"]["body"]["Dense_2"]["kernel"].shape == (2, 5, 4)


@pytest.mark.parametrize("name", ["fedper", "fedavg", "fml"])
def test_methods_without_a_common_structure_are_refused(name):
    made = groups.Groups(tuple(method(name, one) for one in (mlp(4), mlp(6, 4))))
    with pytest.raises(UserError, match="another one for another architecture"):
        federation.programs(lambda *_: made, plan=EVERY_ROUND).run(federation.examples())


def test_messages_without_a_common_structure_are_refused():
    with pytest.raises(UserError, match="group 1 upload other arrays"):
        groups._require_one_structure([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}])
