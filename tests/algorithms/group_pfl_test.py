"""Group PFL: a stage for all clients, one for each group, and fine-tuning."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, World, rate_of
from quadratics import MEANS, SIZES, START, near, personal_gaps, steps_towards, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.errors import UserError

GROUPS = np.array([0, 1, 0])


def test_closed_form():
    models = np.tile(START, (2, 1))
    for round in range(4):
        thetas = steps_towards(models[GROUPS], MEANS)
        for g in (0, 1):
            of_group = np.full(3, True) if round < 2 else GROUPS == g
            models[g] = SIZES[of_group] @ thetas[of_group] / SIZES[of_group].sum()
        assert np.array_equal(*models) == (round < 2)
    settings = {"groups": 2, "group_of_clients": "0, 1, 0", "global_share": 0.5}
    outcome = quadratics.run("group_pfl", 4, personal_epochs=2, **settings)
    near(vector(outcome.server.params), models)
    tuned = steps_towards(models[GROUPS], MEANS, steps=2)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(tuned))


def test_without_the_second_stage_and_with_one_group_it_is_fedavg_with_fine_tuning():
    tuned = identities.run("fedavg_ft", fine_tuning_epochs=2)
    all_rounds = identities.run("group_pfl", global_share=1.0, personal_epochs=2)
    for g in (0, 1):
        own = jax.tree.map(lambda leaf, g=g: leaf[g], all_rounds.server.params)
        federation.assert_close(own, tuned.server.params)
    federation.assert_close(all_rounds.scores["personal"], tuned.scores["personal"], 1e-5)
    one = identities.run("group_pfl", global_share=0.0, groups=1, personal_epochs=2)
    federation.assert_close(one.scores["personal"], tuned.scores["personal"], 1e-5)
    staged = identities.run("group_pfl", global_share=0.5, personal_epochs=2)
    assert federation.differ(staged.server.params, all_rounds.server.params)


def test_groups_from_scratch_are_fedavg_within_each_group():
    # Of twins, all of one size: clients 0, 2 and 4, and clients 1 and 3.
    settings = {"rounds": 2, "plan": None}
    for g, members in enumerate(([0, 2, 4], [1, 3])):
        data = identities.twins()
        some = federation.examples_of(
            np.concatenate([data.inputs[16 * k : 16 * (k + 1)] for k in members]),
            np.concatenate([data.targets[16 * k : 16 * (k + 1)] for k in members]),
            np.full(len(members), 16),
            num_classes=3,
        )
        plans = [sampling.CohortPlan(n, n) for n in (5, len(members))]
        together, alone = (
            identities.run(name, data=of, **{**settings, "plan": plan, **own})
            for name, of, plan, own in (
                ("group_pfl", data, plans[0], {"global_share": 0.0}),
                ("fedavg", some, plans[1], {}),
            )
        )
        own = jax.tree.map(lambda leaf, g=g: leaf[g], together.server.params)
        federation.assert_close(own, alone.server.params)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0,2", "entry '2'; give numbers from 0 to 1"),
        ("0,a", "entry 'a'"),
        ("0,,1", "entry ''"),
        ("0,-1", "entry '-1'"),
        ("0,1,1", "3 entries for 8 clients"),
    ],
)
def test_a_wrong_list_of_groups_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        algorithm = federation.make("group_pfl", groups=2, group_of_clients=text)
        algorithm.init_server(federation.examples().population(), jax.random.key(0))


def test_an_unlisted_client_starts_from_the_mean_of_the_groups():
    task, local = federation.task(), federation.local_training()
    method = ALGORITHMS["group_pfl"](
        task, local, group_of_clients="0,1,1,0,1,0,0,1", personal_epochs=0
    )
    server = method.init_server(federation.examples().population(), jax.random.key(0))
    factor = jnp.array([1.0, 3.0])
    models = jax.tree.map(
        lambda leaf: leaf * factor.reshape(2, *[1] * (leaf.ndim - 1)), server.params
    )
    start = jax.tree.map(lambda leaf: leaf[0], server.params)
    data = jax.tree.map(jnp.asarray, federation.examples())
    for k, wanted in ((0, 1), (2, 3), (7, 3), (8, 2)):
        context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(1), k)
        found = method.personalize(
            server._replace(params=models), (), data.of_client(jnp.int32(k)), context
        )
        federation.assert_close(found, jax.tree.map(lambda leaf, f=wanted: f * leaf, start))


def test_batch_norm():
    groups, round = np.arange(9) % 2, iter(range(2))

    def models_of(server):
        return [jax.tree.map(lambda leaf, g=g: leaf[g], server.params) for g in (0, 1)]

    def one_round(server, clients, ids, found):
        models, is_global = models_of(server), next(round) == 0
        trained = {k: plain.train(models[groups[k]], *plain.examples(k)) for k in ids}
        assert is_global or {groups[k] for k in ids} == {0, 1}
        for g in (0, 1):
            own = [k for k in ids if is_global or groups[k] == g]
            models[g] = plain.average([trained[k] for k in own], plain.sizes(own))
        return server._replace(params=jax.tree.map(lambda *leaf: jnp.stack(leaf), *models))

    def personal(server, client, x, y):
        k = next(k for k in range(9) if np.array_equal(plain.examples(k)[0], x))
        return plain.train(models_of(server)[groups[k]], x, y, epochs=1)

    batch_norm.check("group_pfl", one_round, personal=personal)


def test_plain_loop():
    groups = [0, 1, 1, 0]

    def loop(world: World):
        models = [world.params, world.params]
        for r, cohort in enumerate(world.cohorts):
            trained = {k: world.train(k, models[groups[k]], rate_of(r)) for k in cohort}
            if r < 1:  # of three rounds, 0.4 in the first stage
                models = [plain_loops.mean(trained)] * 2
            else:
                for g in (0, 1):
                    own = {k: theta for k, theta in trained.items() if groups[k] == g}
                    models[g] = plain_loops.mean(own) if own else models[g]
            deployed = {k: world.train(k, models[groups[k]], rate_of(3), 2) for k in range(4)}
            yield Round(plain_loops.by_array(np.stack(models)), {}, deployed)

    settings = {"groups": 2, "group_of_clients": "0,1,1,0", "global_share": 0.4}
    plain_rounds.check("group_pfl", loop, {**settings, "personal_epochs": 2})
