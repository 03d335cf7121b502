"""Methods that become one another at a special value, and differ at others."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core, models
from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.fedgen import draw
from pfljax.engine import sampling
from pfljax.errors import UserError

EVERYBODY = sampling.CohortPlan(num_clients=8, size=8)

OPTIONS = ("task", "local", "plan", "data", "rounds")


REP_AND_PAC = (("fedrep", {}), ("fedpac", {"lam": 0.0}))


def run(name, **options):
    hyperparameters = {key: options.pop(key) for key in list(options) if key not in OPTIONS}
    task = options.pop("task", federation.task())
    local = options.pop("local", federation.local_training(shuffle=False))
    algorithm = ALGORITHMS[name](task, local, **hyperparameters)
    return federation.run(algorithm, score=task, **options)


def test_fedprox_without_pull_is_fedavg():
    average = run("fedavg").server.model
    federation.assert_close(run("fedprox", mu=0.0).server.model, average)
    assert federation.differ(run("fedprox", mu=1.0).server.model, average)


def test_ditto_without_pull_is_local_training_beside_fedavg():
    ditto = run("ditto", lam=0.0, personal_epochs=2)
    federation.assert_close(ditto.server.model, run("fedavg").server.model)
    federation.assert_close(ditto.clients, run("local").clients)
    assert federation.differ(run("ditto", lam=1.0, personal_epochs=2).clients, ditto.clients)


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
        run(name, task=headless).server.average.model, run("fedavg").server.model
    )


def test_fedper_wants_a_body():
    everything = federation.task()._replace(is_head=lambda path: True)
    with pytest.raises(UserError, match="body"):
        run("fedper", task=everything)


def test_fedper_and_fedrep_differ():
    per, rep = run("fedper"), run("fedrep", head_epochs=2)
    assert federation.differ(per.server.average.model, rep.server.average.model)


def test_fedrep_moves_the_head_only_in_the_head_epochs():
    frozen = run("fedrep", head_epochs=0)
    head = frozen.server.initial_head["head"]["kernel"]
    for client in range(8):
        np.testing.assert_array_equal(frozen.clients["head"]["kernel"][client], head)
    moved = run("fedrep", head_epochs=1)
    assert federation.differ(moved.clients, frozen.clients)


def test_fedbabu_without_a_head_is_fedavg_with_fine_tuning():
    headless = federation.task()._replace(is_head=lambda path: False)
    babu = run("fedbabu", task=headless, fine_tuning_epochs=1)
    tuned = run("fedavg_ft", task=headless, fine_tuning_epochs=1)
    federation.assert_close(babu.server.average.model, tuned.server.model)
    federation.assert_close(babu.scores, tuned.scores)


def test_fedbabu_never_moves_the_head_and_so_trains_another_body():
    babu, rep = run("fedbabu", fine_tuning_epochs=0), run("fedrep", head_epochs=0)
    federation.assert_close(babu.server, rep.server)  # FedRep without head epochs: the same head
    federation.assert_close(babu.scores["personal"], babu.scores["global"])
    assert federation.differ(babu.server.average.model, run("fedper").server.average.model)
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
    federation.assert_close(meta.server.model, average.server.model)
    federation.assert_close(meta.scores["personal"], average.scores["global"])
    other = run("perfedavg", data=twins(), plan=plan, alpha=0.5)
    assert federation.differ(other.server.model, average.server.model)
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
    server = algorithm.init_server(jax.random.key(0), None)
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(1))
    change = core.mean(algorithm.client_update(server, (), data, context).sum)

    def after_a_step(model):
        batch = data.take(jnp.arange(2))
        gradient = jax.grad(task.loss)(model, batch, context.key)
        moved = jax.tree.map(lambda leaf, g: leaf - alpha * g, model, gradient)
        return task.loss(moved, batch, context.key)

    exact = jax.tree.map(jnp.negative, jax.grad(after_a_step)(server.model))
    federation.assert_close(change, exact, tolerance=2e-4)
    first_order = ALGORITHMS["perfedavg"](task, local, alpha=alpha)
    change = core.mean(first_order.client_update(server, (), data, context).sum)
    assert federation.differ(change, exact, least=1e-2)


def test_pfedme_with_one_inner_step_on_one_batch_is_fedavg():
    # theta is then a step away from w, and w goes 0.1 * lam of that step.
    once = federation.local_training(shuffle=False, batch_size=16, epochs=1)
    settings = {"lam": 2.0, "inner_rate": 0.5, "weight_by_size": True}
    average = run("fedavg", local=once).server.model
    moreau = run("pfedme", local=once, inner_steps=1, **settings)
    federation.assert_close(moreau.server.model, average)
    for change in ({"inner_steps": 2}, {"beta": 2.0}, {"weight_by_size": False}):
        other = run("pfedme", local=once, **{"inner_steps": 1, **settings, **change})
        assert federation.differ(other.server.model, average)


def test_pfedme_without_pull_is_local_training_beside_a_server_at_rest():
    moreau = run("pfedme", rounds=1, lam=0.0, inner_steps=1, inner_rate=0.1)
    federation.assert_close(moreau.clients, run("local", rounds=1).clients)
    untouched = run("pfedme", rounds=3, beta=0.0)
    federation.assert_close(untouched.server.model, moreau.server.model)
    pulled = run("pfedme", rounds=1, lam=1.0, inner_steps=1, inner_rate=0.1)
    assert federation.differ(pulled.clients, moreau.clients)
    assert federation.differ(pulled.server.model, moreau.server.model)


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


@pytest.mark.parametrize("lacking", ["num_classes", "num_features"])
def test_fedproto_wants_classes_and_features(lacking):
    with pytest.raises(UserError, match="FedProto needs"):
        run("fedproto", task=federation.task()._replace(**{lacking: 0}))


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


def test_fedpac_wants_classes():
    with pytest.raises(UserError, match="FedPAC needs"):
        run("fedpac", task=federation.task()._replace(num_classes=0))


def test_fedkd_without_distillation_is_local_training_beside_fedavg():
    apart = {"distillation": 0.0, "hidden": 0.0, "energy_start": 1.0, "energy_end": 1.0}
    fedkd = run("fedkd", weight_by_size=True, **apart)
    federation.assert_close(fedkd.server.model, run("fedavg").server.model)
    federation.assert_close(fedkd.clients.mentor, run("local").clients)
    np.testing.assert_array_equal(fedkd.metrics["sent"], 1)
    cut = run("fedkd", weight_by_size=True, **{**apart, "energy_start": 0.5})
    assert federation.differ(cut.server.model, fedkd.server.model)
    assert np.all(cut.metrics["sent"] < 1)
    for change in ({"distillation": 1.0}, {"hidden": 1.0}):
        other = run("fedkd", weight_by_size=True, **{**apart, **change})
        assert federation.differ(other.clients.mentor, fedkd.clients.mentor)
        assert federation.differ(other.server.model, fedkd.server.model)


def test_fedkd_shares_a_smaller_model():
    small = models.classification(
        models.mlp((federation.NUM_FEATURES,), 3, widths=(2,)), num_classes=3
    )
    outcome = run("fedkd", mentee=small)
    assert outcome.server.model["head"]["kernel"].shape == (2, 3)
    assert outcome.clients.mentor["head"]["kernel"].shape == (9, 4, 3)
    assert outcome.clients.bridge.shape == (9, 2, 4)
    assert set(outcome.scores) == {"personal"}


def test_fedkd_wants_features():
    with pytest.raises(UserError, match="FedKD needs"):
        run("fedkd", task=federation.task()._replace(num_features=0))


def test_fedgen_without_weight_is_fedavg():
    small = {"noise_size": 2, "hidden_size": 4, "generator_steps": 2}
    average = run("fedavg")
    plain = run("fedgen", weight=0.0, **small)
    federation.assert_close(plain.server.average, average.server)
    federation.assert_close(plain.scores, average.scores)
    taught = run("fedgen", weight=1.0, **small)
    assert federation.differ(taught.server.average.model, average.server.model)


def test_fedgen_draws_no_label_that_nobody_has():
    shares = jnp.array([0.25, 0.0, 0.75])
    labels, noise = draw(jax.random.key(0), shares, 400, 2, True)
    counts = np.bincount(labels, minlength=3)
    assert counts[1] == 0 and abs(counts[0] - 100) < 40
    assert noise.shape == (400, 2) and 0 <= noise.min() and noise.max() < 1
    _, noise = draw(jax.random.key(0), shares, 400, 2, False)
    assert noise.min() < 0 and abs(noise.std() - 1) < 0.1


def test_fedgen_wants_a_head():
    with pytest.raises(UserError, match="FedGen needs"):
        run("fedgen", task=federation.task()._replace(is_head=lambda path: False))


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
    assert federation.differ(plain.server.model, quiet.server.model)


def test_fedcp_without_rounds_answers_as_the_model_where_the_head_is_linear():
    # The two parts of the features add up to them, and both heads are the same at first.
    def head(model, features):
        return features @ model["head"]["kernel"]

    def predict(model, inputs):
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


def test_fedcp_wants_a_body():
    with pytest.raises(UserError, match="FedCP needs"):
        run("fedcp", task=federation.task()._replace(is_head=lambda path: True))


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
            federation.run(scaffold, data=data, plan=plan, rounds=rounds).server.average.model,
            federation.run(average, data=data, plan=plan, rounds=rounds).server.model,
        )

    federation.assert_close(*models(1))
    assert federation.differ(*models(3))


def test_server_optimizers_are_configurations_of_fedavg():
    plain = run("fedavg")
    half = run("fedavg", server_optimizer=optax.sgd(0.5))
    adam = run("fedavg", server_optimizer=optax.adam(0.05))
    momentum = run("fedavg", server_optimizer=optax.sgd(1.0, momentum=0.9))
    for other in (half, adam, momentum):
        assert federation.differ(plain.server.model, other.server.model)
