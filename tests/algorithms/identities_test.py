"""Methods that become one another at a special value, and differ at others."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.ops import hypernetwork

EVERYBODY = sampling.CohortPlan(num_clients=8, size=8)

OPTIONS = ("task", "local", "plan", "data", "rounds", "join")

REP_AND_PAC = (("fedrep", {}), ("fedpac", {"lam": 0.0}))


def run(name, **options):
    """Runs a method on the tiny federation; the same run is not repeated for another test."""
    return run_anew(name, **options) if "data" in options else run_once(name, **options)


def run_anew(name, **options):
    hyperparameters = {key: options.pop(key) for key in list(options) if key not in OPTIONS}
    task = options.pop("task", federation.task())
    local = options.pop("local", federation.local_training(shuffle=False))
    local = local._replace(observe=task.observe)
    algorithm = ALGORITHMS[name](task, local, **hyperparameters)
    return federation.run(algorithm, score=task, **options)


run_once = functools.cache(run_anew)


def test_fedprox_without_pull_is_fedavg():
    average = run("fedavg").server.params
    federation.assert_close(run("fedprox", mu=0.0).server.params, average)
    assert federation.differ(run("fedprox", mu=1.0).server.params, average)


def test_ditto_without_pull_is_local_training_beside_fedavg():
    ditto = run("ditto", lam=0.0, personal_epochs=2, join="initial")
    federation.assert_close(ditto.server.params, run("fedavg").server.params)
    federation.assert_close(ditto.clients, run("local").clients)
    assert federation.differ(run("ditto", lam=1.0, personal_epochs=2).clients, ditto.clients)


def test_apfl_between_fedavg_and_local_training():
    average, local = run("fedavg", plan=EVERYBODY), run("local", plan=EVERYBODY)
    held = {"plan": EVERYBODY, "alpha_rate": 0.0, "weight_by_size": True}
    common = run("apfl", alpha=0.0, **held)
    federation.assert_close(common.scores["personal"], average.scores["global"])
    own = run("apfl", alpha=1.0, join="initial", **held)
    federation.assert_close(own.server.params, average.server.params)
    federation.assert_close(own.clients.params, local.clients)
    federation.assert_close(own.scores["personal"], local.scores["personal"])
    assert federation.differ(run("apfl", alpha=0.5, **held).clients.params, local.clients)
    moving = run("apfl", plan=EVERYBODY, alpha=0.5, alpha_rate=0.3).clients.alpha
    assert np.all((moving >= 0) & (moving <= 1)) and np.ptp(moving) > 0


def test_fine_tuning_for_no_epoch_is_fedavg():
    average = run("fedavg", plan=EVERYBODY)
    tuned = run("fedavg_ft", plan=EVERYBODY, fine_tuning_epochs=0)
    federation.assert_close(tuned.scores, average.scores)
    more = run("fedavg_ft", plan=EVERYBODY, fine_tuning_epochs=3)
    federation.assert_close(more.scores["global"], average.scores["global"])
    assert federation.differ(more.scores["personal"], average.scores["personal"])


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_without_a_head_the_body_is_averaged_as_in_fedavg(name):
    headless = federation.task()._replace(is_head=lambda path: False)
    federation.assert_close(
        run(name, task=headless).server.average.params, run("fedavg").server.params
    )


def test_fedper_and_fedrep_differ():
    per, rep = run("fedper"), run("fedrep", head_epochs=2)
    assert federation.differ(per.server.average.params, rep.server.average.params)


def test_fedrep_moves_the_head_only_in_the_head_epochs():
    # In the first round the head trains before the body, whose epochs then leave it as it is.
    short, long = (
        run("fedrep", rounds=1, local=federation.local_training(shuffle=False, epochs=epochs))
        for epochs in (1, 3)
    )
    assert federation.differ(short.server.average.params, long.server.average.params)
    federation.assert_close(short.clients, long.clients)
    moved = run("fedrep", rounds=1, head_epochs=1)
    assert federation.differ(moved.clients, short.clients)


def test_fedrep_averages_by_examples_or_uniformly():
    by_size = run("fedrep", head_epochs=1)
    uniform = run("fedrep", head_epochs=1, weight_by_size=False)
    assert federation.differ(by_size.server.average.params, uniform.server.average.params)
    same = {"data": twins(), "plan": sampling.CohortPlan(num_clients=5, size=5), "head_epochs": 1}
    by_size, uniform = (run("fedrep", **same, weight_by_size=flag) for flag in (True, False))
    federation.assert_close(by_size.server.average.params, uniform.server.average.params)


def test_fedbabu_without_a_head_is_fedavg_with_fine_tuning():
    headless = federation.task()._replace(is_head=lambda path: False)
    babu = run("fedbabu", task=headless, fine_tuning_epochs=1)
    tuned = run("fedavg_ft", task=headless, fine_tuning_epochs=1)
    federation.assert_close(babu.server.average.params, tuned.server.params)
    federation.assert_close(babu.scores, tuned.scores)


def test_fedbabu_never_moves_the_head_and_so_trains_another_body():
    babu = run("fedbabu", fine_tuning_epochs=0)
    after_one = run("fedbabu", rounds=1, fine_tuning_epochs=0).server
    federation.assert_close(babu.server.initial_head, after_one.initial_head)
    assert federation.differ(babu.server.average.params, after_one.average.params)
    federation.assert_close(babu.scores["personal"], babu.scores["global"])
    assert federation.differ(babu.server.average.params, run("fedper").server.average.params)
    more = run("fedbabu", fine_tuning_epochs=2)
    federation.assert_close(more.server, babu.server)
    assert federation.differ(more.scores["personal"], babu.scores["personal"])


def twins():
    """Clients each of whose batches of four holds two examples twice, one copy in each half."""
    draw = np.random.default_rng(2)
    targets = draw.integers(0, 3, (5, 4, 1, 2)).astype(np.int32)
    inputs = draw.normal(size=(5, 4, 1, 2, federation.NUM_FEATURES)).astype(np.float32)
    targets, inputs = np.repeat(targets, 2, axis=2), np.repeat(inputs, 2, axis=2)
    return federation.examples_of(
        inputs.reshape(80, -1), targets.reshape(80), np.full(5, 16), num_classes=3
    )


def test_perfedavg_without_inner_step_is_fedavg():
    plan = sampling.CohortPlan(num_clients=5, size=5)
    average = run("fedavg", data=twins(), plan=plan)
    meta = run("perfedavg", data=twins(), plan=plan, alpha=0.0)
    federation.assert_close(meta.server.params, average.server.params)
    federation.assert_close(meta.scores["personal"], average.scores["global"])
    other = run("perfedavg", data=twins(), plan=plan, alpha=0.5)
    assert federation.differ(other.server.params, average.server.params)
    assert federation.differ(other.scores["personal"], other.scores["global"])


def test_perfedavg_adapts_as_often_as_asked():
    # Six steps are one epoch and more of any client; none is the common model.
    none, one, six = (run("perfedavg", alpha=0.5, adaptation_steps=n) for n in (0, 1, 6))
    federation.assert_close(none.server, six.server)
    federation.assert_close(none.scores["personal"], none.scores["global"])
    assert federation.differ(one.scores["personal"], none.scores["personal"])
    assert federation.differ(six.scores["personal"], one.scores["personal"])


def test_the_hessian_term_of_perfedavg_is_the_derivative_of_the_inner_step():
    # Where the three parts hold the same examples, it is the gradient of the loss after the step.
    alpha, task = 0.4, federation.task()
    thrice = federation.examples_of(
        np.tile(federation.examples().inputs[:2], (3, 1)),
        np.tile(federation.examples().targets[:2], 3),
        np.array([6]),
        num_classes=3,
    )
    data = jax.tree.map(jnp.asarray, thrice).of_client(jnp.int32(0))
    local = core.LocalTraining(optax.sgd(1.0), batch_size=6, shuffle=False)
    algorithm = ALGORITHMS["perfedavg"](task, local, alpha=alpha, hessian_free=True)
    server = algorithm.init_server(None, jax.random.key(0))
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(1))
    change = core.mean(algorithm.client_update(server, (), data, context).sum)

    def after_a_step(model):
        batch = data.take(jnp.arange(2))
        gradient = jax.grad(task.loss)(model, batch, context.key)
        moved = jax.tree.map(lambda leaf, g: leaf - alpha * g, model, gradient)
        return task.loss(moved, batch, context.key)

    exact = jax.tree.map(jnp.negative, jax.grad(after_a_step)(server.params))
    federation.assert_close(change, exact, tolerance=2e-4)
    first_order = ALGORITHMS["perfedavg"](task, local, alpha=alpha)
    change = core.mean(first_order.client_update(server, (), data, context).sum)
    assert federation.differ(change, exact, least=1e-2)


def test_pfedme_with_one_inner_step_on_one_batch_is_fedavg():
    # theta is then a step away from w, and w goes 0.1 * lam of that step.
    once = federation.local_training(shuffle=False, batch_size=16, epochs=1)
    settings = {"lam": 2.0, "inner_rate": 0.5, "weight_by_size": True}
    average = run("fedavg", local=once).server.params
    moreau = run("pfedme", local=once, inner_steps=1, **settings)
    federation.assert_close(moreau.server.params, average)
    for change in ({"inner_steps": 2}, {"beta": 2.0}, {"weight_by_size": False}):
        other = run("pfedme", local=once, **{"inner_steps": 1, **settings, **change})
        assert federation.differ(other.server.params, average)


def test_pfedme_without_pull_is_local_training_beside_a_server_at_rest():
    moreau = run("pfedme", rounds=1, lam=0.0, inner_steps=1, inner_rate=0.1)
    federation.assert_close(moreau.clients, run("local", rounds=1).clients)
    untouched = run("pfedme", rounds=3, beta=0.0)
    federation.assert_close(untouched.server.params, moreau.server.params)
    pulled = run("pfedme", rounds=1, lam=1.0, inner_steps=1, inner_rate=0.1)
    assert federation.differ(pulled.clients, moreau.clients)
    assert federation.differ(pulled.server.params, moreau.server.params)


def test_fedproto_without_pull_is_local_training():
    alone = run("local")
    apart = run("fedproto", lam=0.0)
    federation.assert_close(apart.clients, alone.clients)
    # Before the first round the head answers, as it does in local training; later the prototypes.
    federation.assert_close(apart.untrained_scores, alone.untrained_scores)
    assert federation.differ(apart.scores, alone.scores)
    assert federation.differ(run("fedproto", lam=1.0).clients, alone.clients)


def test_prototypes_of_fedproto_in_training_and_after_it():
    at_rest = federation.local_training(shuffle=False, optimizer=optax.sgd(0.0))
    for local, same in ((at_rest, True), (federation.local_training(shuffle=False), False)):
        during, after = (
            run("fedproto", local=local, prototypes_in_training=flag).server.prototypes.means
            for flag in (True, False)
        )
        if same:
            federation.assert_close(during, after)
        else:
            assert federation.differ(during, after)


@pytest.mark.parametrize("special", [{"eta": 0.0}, {"layers": 0}])
def test_fedala_that_learns_no_weights_is_fedavg(special):
    average, adaptive = run("fedavg"), run("fedala", **special)
    federation.assert_close(adaptive.server, average.server)
    federation.assert_close(adaptive.scores["personal"], average.scores["global"], 1e-5)
    other = run("fedala")
    assert federation.differ(other.server, average.server)
    assert federation.differ(other.scores["personal"], other.scores["global"])


def test_every_setting_of_fedala_counts():
    usual = run("fedala").server
    for change in ({"layers": 2}, {"share": 0.4}, {"first_passes": 3}, {"settled": 1e-6}):
        assert federation.differ(run("fedala", **change).server, usual, least=1e-6)


def test_the_first_phase_of_fedala_begins_where_the_models_part():
    first = run("fedala", rounds=1).clients
    assert not np.any(first.started)  # all are at the common start
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(first.weights))
    assert np.any(run("fedala", rounds=2).clients.started)


def test_fedcac_without_critical_entries_is_fedavg():
    average, cautious = run("fedavg"), run("fedcac", tau=0.0)
    federation.assert_close(cautious.server.average, average.server)
    federation.assert_close(cautious.scores["personal"], average.scores["global"])
    other = run("fedcac")
    assert federation.differ(other.server.average, average.server)
    assert federation.differ(other.scores["personal"], other.scores["global"])


def test_beta_of_fedcac_determines_how_long_clients_share():
    first, later, never = (run("fedcac", beta=b).clients.params for b in (0.1, 0.2, 100.0))
    federation.assert_close(first, later)
    assert federation.differ(first, never)


def test_fedbn_is_fedper_with_normalization_for_a_head():
    task = federation.task("mlp_bn")
    norm = run("fedbn", task=task)
    per = run("fedper", task=task._replace(is_head=task.is_norm))
    federation.assert_close(norm.server, per.server)
    federation.assert_close(norm.clients, per.clients)
    average = run("fedavg", task=task).server.params
    shared = norm.server.average.params
    assert federation.differ(shared["head"], average["head"])
    assert set(shared["body"]) == {"Dense_0"}
    assert set(norm.clients["body"]["BatchNorm_0"]) == {"scale", "bias", "mean", "var"}


def small_clients():
    """Four clients that fit into one batch of four."""
    sizes = np.array([3, 2, 4, 3])
    whole = federation.examples()
    inputs, targets = (leaf[: sizes.sum()] for leaf in (whole.inputs, whole.targets))
    return federation.examples_of(inputs, targets, sizes, num_classes=3)


@pytest.mark.slow  # `batch_norm_test.py` has partial batches and chunks, and a plain loop for each.
@pytest.mark.parametrize(
    "name",
    [
        *("fedavg", "scaffold", "ditto", "apfl", "fedrep", "fedbabu", "perfedavg", "pfedme"),
        *("fedala", "fedem", "fedfomo", "fedpac", "fedkd"),
    ],
)
def test_methods_keep_running_statistics_of_the_real_examples(name):
    """Running statistics move, whatever the padding of a batch and of a chunk."""
    plan = sampling.CohortPlan(num_clients=4, size=4)

    def outcome(*, batch_size=4, **options):
        task = federation.task("mlp_bn")
        local = federation.local_training(
            shuffle=False, batch_size=batch_size, observe=task.observe
        )
        # The examples of an adaptation step depend on the size of a batch.
        settings = {"adaptation_steps": 0} if name == "perfedavg" else {}
        algorithm = ALGORITHMS[name](task, local, **settings)
        return federation.run(algorithm, data=small_clients(), plan=plan, score=task, **options)

    tight, padded = outcome(), outcome(batch_size=11, devices=2, chunk=2)
    federation.assert_close(padded.server, tight.server, tolerance=2e-5)
    federation.assert_close(padded.clients, tight.clients, tolerance=2e-5)
    federation.assert_close(padded.scores, tight.scores, tolerance=1e-4)
    for leaf in jax.tree.leaves((tight.server, tight.clients, tight.scores, tight.metrics)):
        assert np.all(np.isfinite(leaf))
    statistics = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path((tight.server, tight.clients))
        if jax.tree_util.keystr(path[-1:]) == "['var']"
        and ".initial[" not in jax.tree_util.keystr(path)  # FedFomo's, with which clients begin
    ]
    assert statistics and all(np.max(np.abs(leaf - 1)) > 1e-2 for leaf in statistics)


def test_fedem_with_one_learner_is_fedavg():
    fixed = federation.task().init(jax.random.key(7))
    alike = federation.task()._replace(init=lambda key: fixed)
    average, single = run("fedavg", task=alike), run("fedem", task=alike, learners=1)
    learner = jax.tree.map(lambda leaf: leaf[0], single.server.average.params)
    federation.assert_close(learner, average.server.params)
    federation.assert_close(single.scores["personal"], average.scores["personal"], 1e-5)
    assert np.all(single.clients == 1)
    # Learners that begin alike are FedAvg's model with a third of its steps, and stay alike.
    third = federation.local_training(shuffle=False, optimizer=optax.sgd(0.1 / 3))
    slow = run("fedavg", task=alike, local=third)
    same = run("fedem", task=alike, learners=3)
    for number in range(3):
        learner = jax.tree.map(lambda leaf, n=number: leaf[n], same.server.average.params)
        federation.assert_close(learner, slow.server.params, 1e-5)
    apart = run("fedem", learners=3)
    assert federation.differ(apart.clients, same.clients)
    assert federation.differ(apart.scores["personal"], average.scores["personal"])


def test_an_unseen_client_of_fedem_learns_how_to_mix():
    outcome = run("fedem")
    uniform = np.full(3, 1 / 3, np.float32)
    np.testing.assert_array_equal(outcome.clients[8], uniform)  # it never took part
    algorithm = ALGORITHMS["fedem"](federation.task(), federation.local_training())
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(8))
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(1), jnp.int32(8))
    server = jax.tree.map(jnp.asarray, outcome.server)
    joined = algorithm.client_update(server, jnp.asarray(uniform), data, context).state
    np.testing.assert_allclose(jnp.sum(joined), 1, rtol=1e-6)
    assert federation.differ(joined, uniform, least=1e-2)


def test_fedfomo_that_weighs_nothing_is_local_training():
    alone = run("local", rounds=6)
    apart = run("fedfomo", rounds=6, validation_share=0.0, join="initial")
    federation.assert_close(apart.clients.params, alone.clients)
    federation.assert_close(apart.scores, alone.scores, 1e-5)
    together = run("fedfomo", rounds=6, validation_share=0.3)
    single = run("fedfomo", rounds=6, validation_share=0.3, models=1)
    assert federation.differ(together.clients.params, single.clients.params)
    off_diagonal = single.server.affinity - np.diag(np.diag(single.server.affinity))
    assert not np.any(off_diagonal) and np.any(np.diag(single.server.affinity) > 1)


@pytest.fixture(scope="module")
def fedfomo_server():
    """The method with three models a client, and a server that knows all but the last model."""

    def make(**settings):
        return ALGORITHMS["fedfomo"](
            federation.task(), federation.local_training(), models=3, **settings
        )

    server = make().init_server(federation.examples().population(), jax.random.key(0))
    order = jnp.array([3.0, 9, -1, 7, 0, -2, 1, 5])  # what each client's model is worth
    uploaded = jnp.arange(8) < 7
    return make, server._replace(affinity=jnp.tile(order, (8, 1)), uploaded=uploaded)


def test_fedfomo_sends_the_models_of_most_affinity(fedfomo_server):
    make, server = fedfomo_server
    for client, wanted in ((0, [1, 3]), (1, [3, 0]), (3, [1, 0])):
        context = core.Context(jax.random.key(client), jnp.int32(0), jnp.int32(1), client)
        _, ids, usable = make(exploration=0.0).download(server, context)
        assert ids.tolist() == wanted and all(usable)


def test_fedfomo_explores_less_and_less_and_sends_the_unseen_anything(fedfomo_server):
    make, server = fedfomo_server

    def sent_to(client, round, **settings):
        method = make(**settings)

        def draw(key):
            context = core.Context(key, jnp.int32(round), jnp.int32(100), jnp.int32(client))
            return method.download(server, context)

        _, ids, usable = jax.jit(lambda keys: jax.lax.map(draw, keys))(
            jax.random.split(jax.random.key(1), 200)
        )
        assert np.all(usable) and not np.any(ids == client)
        return np.asarray(ids)

    for client, exploration in ((0, 1.0), (8, 0.0)):
        ids = sent_to(client, 0, exploration=exploration)
        assert set(ids.flat) == set(range(7)) - {client}  # nobody has client 7's
        assert np.all(ids[:, 0] != ids[:, 1])
    # With the authors' 0.3 less 0.05 a round: nothing is random from the sixth round on. A model of
    # two explores on its own, and finds the best of six or of five by chance.
    for round, chance in ((0, 0.3), (3, 0.15), (6, 0.0), (100, 0.0)):
        share = np.mean(np.any(sent_to(0, round) != [1, 3], axis=1))
        wanted = 1 - (1 - chance * 5 / 6) * (1 - chance * 4 / 5)
        assert abs(share - wanted) <= (0.1 if chance else 0), round


def test_what_fedfomo_holds_out_depends_on_the_seed_and_not_on_the_round():
    # One step on all examples that are not held out: the order in which they come counts nothing.
    local = federation.local_training(batch_size=16, epochs=1)
    fomo = ALGORITHMS["fedfomo"](federation.task(), local, models=1, validation_share=0.5)
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = fomo.init_server(examples.population(), jax.random.key(0))
    client = fomo.init_client(server, None, None)

    def trained(round, seed):
        key, own = jax.random.key(100 + round), jax.random.key(seed)
        context = core.Context(key, jnp.int32(round), jnp.int32(9), jnp.int32(4), own)
        return update(server, client, examples.of_client(jnp.int32(4)), context).state.params

    update = jax.jit(fomo.update_client)
    first = trained(0, seed=1)
    federation.assert_close(trained(3, seed=1), first)
    assert federation.differ(trained(0, seed=2), first)


def test_apple_with_relations_at_rest_and_one_step_is_fedavg():
    # Clients of one size have one share, and every core takes its step of the common gradient.
    options = {
        "data": twins(),
        "plan": sampling.CohortPlan(num_clients=5, size=5),
        "local": federation.local_training(shuffle=False, batch_size=16, epochs=1),
    }
    average = run("fedavg", **options)
    resting = run("apple", relation_rate=0.0, one_core=True, **options)
    mixture = jax.tree.map(lambda leaf: leaf.mean(axis=0), resting.server.cores)
    federation.assert_close(mixture, average.server.params)
    federation.assert_close(resting.scores["personal"], average.scores["personal"], 1e-5)
    np.testing.assert_array_equal(resting.clients, np.full((5, 5), 0.2, np.float32))
    learning = run("apple", relation_rate=0.1, one_core=True, **options)
    assert federation.differ(learning.clients, resting.clients, least=1e-2)
    assert federation.differ(learning.scores["personal"], average.scores["personal"])


def test_every_setting_of_apple_counts():
    settings = {"relation_rate": 0.1, "mu": 1.0, "duration": 1.0, "exponential": False}
    usual = run("apple", **settings).clients
    changes = (
        {"mu": 0.0},
        {"duration": 0.5},
        {"exponential": True},
        {"exponential": True, "epsilon": 0.5},
        {"uniform_start": True},
        {"one_core": True},
    )
    others = [run("apple", **{**settings, **change}).clients for change in changes]
    for number, other in enumerate(others):
        for seen in (usual, *others[:number]):
            assert federation.differ(other, seen)
    never = run("apple", **{**settings, "duration": 0.0}).clients
    federation.assert_close(never, others[0])


def test_an_unseen_client_of_apple_learns_relations():
    outcome = run("apple")
    shares = outcome.server.shares
    np.testing.assert_array_equal(outcome.clients[8], shares)
    algorithm = ALGORITHMS["apple"](
        federation.task(), federation.local_training(), relation_rate=0.1
    )
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(8))
    context = core.Context(jax.random.key(1), jnp.int32(3), jnp.int32(3), jnp.int32(8))
    server = jax.tree.map(jnp.asarray, outcome.server)
    joined = algorithm.client_update(server, server.shares, data, context)
    assert np.all(np.abs(joined.state - shares) > 1e-4)
    last = jax.tree.map(lambda leaf: leaf[-1], server.cores)  # whose place it is shown stays alone
    federation.assert_close(joined.each, last)


def test_pfedhn_without_client_embeddings_is_fedavg():
    # Only the heads' biases then move, along the mean of clients of one size.
    options = {"data": twins(), "plan": sampling.CohortPlan(num_clients=5, size=5)}
    fixed = federation.task().init(jax.random.key(7))
    task = federation.task()._replace(init=lambda key: fixed)
    local = federation.local_training(shuffle=False)
    algorithm = ALGORITHMS["pfedhn"](
        task,
        local,
        rate=0.5,
        layers=0,
        linear_layer=False,
        spread=0.0,
        weight_decay=0.0,
        clip=1e9,
    )

    def init_server(population, key):
        server = algorithm.init_server(population, key)
        return server._replace(embeddings=jnp.zeros_like(server.embeddings))

    blind = federation.run(algorithm._replace(init_server=init_server), score=task, **options)
    momentum = optax.sgd(0.5, momentum=0.9)
    average = run("fedavg", task=task, server_optimizer=momentum, **options)
    federation.assert_close(blind.server.network["heads"]["bias"], average.server.params)
    federation.assert_close(blind.scores["personal"], average.scores["personal"], 1e-5)
    seeing = federation.run(algorithm, score=task, **options)
    assert federation.differ(seeing.scores["personal"], blind.scores["personal"])


def test_every_setting_of_pfedhn_counts():
    usual = run("pfedhn").scores["personal"]
    for change in (
        {"rate": 0.02},
        {"momentum": 0.5},
        {"embedding_size": 2},
        {"hidden": 50},
        {"layers": 2},
        {"spread": 0.2},
        {"weight_decay": 0.1},
        {"clip": 0.01},
        {"linear_layer": False},
        {"joining_rounds": 3},
    ):
        scores = run("pfedhn", **change).scores["personal"]
        assert federation.differ(scores, usual), change
    seen, unseen = (
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], (scores, usual))
        for rows in (slice(8), slice(8, None))
    )
    assert not federation.differ(*seen) and federation.differ(*unseen)  # joining_rounds, the last


def test_the_first_models_of_pfedhn_are_near_the_initialization_of_the_task():
    algorithm = ALGORITHMS["pfedhn"](federation.task(), federation.local_training(), spread=0.1)
    server = algorithm.init_server(federation.examples().population(), jax.random.key(3))
    models = hypernetwork.generate(server.network, server.embeddings)
    start = server.network["heads"]["bias"]
    for made, own in zip(jax.tree.leaves(models), jax.tree.leaves(start), strict=True):
        scale = np.sqrt(np.mean(own**2))
        assert 0.01 * scale < np.sqrt(np.mean((made - own) ** 2)) < 0.5 * scale


def test_fedpac_without_pull_begins_as_fedrep_and_alone_remains_it():
    rep, pac = (run(name, rounds=1, head_epochs=1, **kw) for name, kw in REP_AND_PAC)
    federation.assert_close(pac.server.average, rep.server.average)
    assert federation.differ(pac.clients, rep.clients)  # these are mixed already
    alone = sampling.CohortPlan(num_clients=8, size=1)
    rep, pac = (run(name, plan=alone, head_epochs=1, **kw) for name, kw in REP_AND_PAC)
    federation.assert_close(pac.server.average, rep.server.average)
    federation.assert_close(pac.clients, rep.clients)
    pulled = run("fedpac", plan=alone, head_epochs=1, lam=1.0)
    assert federation.differ(pulled.server.average, rep.server.average)


def test_fedkd_without_distillation_is_local_training_beside_fedavg():
    apart = {"distillation": 0.0, "hidden": 0.0, "energy_start": 1.0, "energy_end": 1.0}
    apart["join"] = "initial"  # as in local training, which has no common model
    fedkd = run("fedkd", weight_by_size=True, **apart)
    federation.assert_close(fedkd.server.params, run("fedavg").server.params)
    federation.assert_close(fedkd.clients.mentor, run("local").clients)
    whole = 4 * (core.tree.size(fedkd.server.params) + 1)  # and the weight
    np.testing.assert_array_equal(fedkd.metrics["upload_bytes"], whole)
    cut = run("fedkd", weight_by_size=True, **{**apart, "energy_start": 0.5})
    assert federation.differ(cut.server.params, fedkd.server.params)
    sent = cut.metrics["upload_bytes"]
    assert np.all(sent[:-1] < whole) and sent[-1] == whole
    for change in ({"distillation": 1.0}, {"hidden": 1.0}):
        other = run("fedkd", weight_by_size=True, **{**apart, **change})
        assert federation.differ(other.clients.mentor, fedkd.clients.mentor)
        assert federation.differ(other.server.params, fedkd.server.params)


def test_fedkd_shares_a_smaller_model():
    small = tasks.classification(
        models.mlp((federation.NUM_FEATURES,), 3, widths=(2,)), num_classes=3
    )
    outcome = run("fedkd", mentee=small)
    assert outcome.server.params["head"]["kernel"].shape == (2, 3)
    assert outcome.clients.mentor["head"]["kernel"].shape == (9, 4, 3)
    assert outcome.clients.bridge.shape == (9, 2, 4)
    assert set(outcome.scores) == {"personal"}


def test_fedgen_without_weight_is_fedavg():
    small = {"noise_size": 2, "hidden_size": 4, "generator_steps": 2}
    average = run("fedavg")
    plain = run("fedgen", weight=0.0, **small)
    federation.assert_close(plain.server.average, average.server)
    federation.assert_close(plain.scores, average.scores)
    taught = run("fedgen", weight=1.0, **small)
    assert federation.differ(taught.server.average.params, average.server.params)


def test_fedcp_draws_noise_in_training_only():
    quiet = run("fedcp", rounds=1, plan=EVERYBODY)
    noisy = run("fedcp", rounds=1, plan=EVERYBODY, noisy_evaluation=True)
    federation.assert_close(noisy.server, quiet.server)
    federation.assert_close(noisy.clients, quiet.clients)
    assert federation.differ(noisy.scores, quiet.scores)
    # At a rate of zero nothing moves, so that the same models are evaluated, with other keys.
    still = run("fedcp", rounds=1, local=federation.local_training(optimizer=optax.sgd(0.0)))
    federation.assert_close(still.scores, still.untrained_scores)
    plain = run("fedcp", rounds=1, plan=EVERYBODY, gumbel=0.0)
    assert federation.differ(plain.server.params, quiet.server.params)


def test_fedcp_without_rounds_answers_as_the_model_where_the_head_is_linear():
    # The two parts of the features add up to them, and both heads are the same at first.
    def head(model, features, mask=None, key=None):
        return features @ model["head"]["kernel"]

    def predict(model, inputs, mask=None, key=None):
        return head(model, task.features(model, inputs))

    task = federation.task()
    without_bias = task._replace(head=head, predict=predict)
    ours, average = (run(name, task=without_bias, rounds=1) for name in ("fedcp", "fedavg"))
    ours_then, theirs_then = (
        jax.tree.map(lambda leaf: leaf[:8], outcome.untrained_scores["personal"])  # without joining
        for outcome in (ours, average)
    )
    federation.assert_close(ours_then, theirs_then, tolerance=1e-5)
    assert federation.differ(ours.scores["personal"], average.scores["personal"])


def test_scaffold_begins_as_uniform_fedavg_and_then_differs():
    # In the first round every control variate is zero; clients of one size have one weight.
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 3, 40).astype(np.int32)
    inputs = draw.normal(size=(40, federation.NUM_FEATURES)).astype(np.float32) + targets[:, None]
    data = federation.examples_of(inputs, targets, np.full(5, 8), num_classes=3)
    plan = sampling.CohortPlan(num_clients=5, size=5)

    def models(rounds):
        local = federation.local_training(shuffle=False)
        scaffold = ALGORITHMS["scaffold"](federation.task(), local)
        average = ALGORITHMS["fedavg"](federation.task(), local)
        return (
            federation.run(scaffold, data=data, plan=plan, rounds=rounds).server.average.params,
            federation.run(average, data=data, plan=plan, rounds=rounds).server.params,
        )

    federation.assert_close(*models(1))
    assert federation.differ(*models(3))


def test_server_optimizers_are_configurations_of_fedavg():
    plain = run("fedavg")
    half = run("fedavg", server_optimizer=optax.sgd(0.5))
    adam = run("fedavg", server_optimizer=optax.adam(0.05))
    momentum = run("fedavg", server_optimizer=optax.sgd(1.0, momentum=0.9))
    for other in (half, adam, momentum):
        assert federation.differ(plain.server.params, other.server.params)
