"""FedPerfix: personal adapters of keys and values, and personal heads."""

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
import trajectories
from plain_loops import BODY_BIAS, BODY_KERNEL, HEAD, Round, rate_of
from quadratics import MEANS, SHARE, START, near, steps_towards

from pfljax import models
from pfljax.algorithms import ALGORITHMS
from pfljax.core.params import split_params
from pfljax.errors import UserError
from pfljax.models.attention import Attention


def quadratic_with_an_adapter():
    """The quadratic task, whose third weight belongs to an adapter in the body."""
    task = quadratics.quadratic()

    def as_two(model):
        own = jnp.concatenate([model["body"]["adapter"], model["head"]["w"]])
        return {"body": {"w": model["body"]["w"]}, "head": {"w": own}}

    def of_two(function):
        return lambda model, *arguments, **named: function(as_two(model), *arguments, **named)

    return task._replace(
        init=lambda key: {
            "body": {"w": jnp.zeros(2), "adapter": jnp.zeros(1)},
            "head": {"w": jnp.zeros(1)},
        },
        losses=of_two(task.losses),
        loss=of_two(task.loss),
        predict=of_two(task.predict),
        is_adapter=lambda path: "adapter" in path,
    )


def test_closed_form():
    common, own = START[:2], np.zeros((3, 2))
    for _ in range(2):
        common = SHARE @ steps_towards(common, MEANS[:, :2])
        own = steps_towards(own, MEANS[:, 2:])
    task = quadratic_with_an_adapter()
    method = ALGORITHMS["fedperfix"](task, quadratics.LOCAL)
    outcome = federation.run(
        method, data=quadratics.DATA, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    assert set(outcome.server.average.params["body"]) == {"w"}
    near(outcome.server.average.params["body"]["w"], common)
    near(outcome.clients["body"]["adapter"], own[:, :1])
    near(outcome.clients["head"]["w"], own[:, 1:])
    deployed = np.concatenate([np.tile(common, (3, 1)), own], axis=1)
    near(outcome.scores["personal"]["test"]["loss"], quadratics.personal_gaps(deployed))


def test_batch_norm():
    """The layer with running statistics takes the part of the adapter."""
    task = batch_norm.TASK._replace(is_adapter=lambda path: plain.NORM in path)

    def one_round(server, clients, ids, found):
        common = []
        for k in ids:
            model = {
                "body": {**server.average.params["body"], **clients[k]["body"]},
                "head": clients[k]["head"],
            }
            model = plain.train(model, *plain.examples(k))
            clients[k] = {"body": {plain.NORM: model["body"][plain.NORM]}, "head": model["head"]}
            common.append({"body": {"Dense_0": model["body"]["Dense_0"]}})
        return server._replace(average=batch_norm.fed_average(server.average, common, ids))

    batch_norm.check("fedperfix", one_round, task=task)


def test_plain_loop():
    """The bias of the body takes the part of the adapter."""

    def loop(world):
        w, own = world.params.copy(), {}
        for r, cohort in enumerate(world.cohorts):
            trained = {}
            for k in cohort:
                start = w.copy()
                start[BODY_BIAS], start[HEAD] = own.get(k, (w[BODY_BIAS], w[HEAD]))
                trained[k] = world.train(k, start, rate_of(r))
                own[k] = trained[k][BODY_BIAS], trained[k][HEAD]
            w[BODY_KERNEL] = plain_loops.mean(trained)[BODY_KERNEL]
            states = {k: np.concatenate(parts) for k, parts in own.items()}
            deployed = {k: np.concatenate([a, w[BODY_KERNEL], b]) for k, (a, b) in own.items()}
            yield Round(w[BODY_KERNEL], states, deployed)

    plain_rounds.check("fedperfix", loop, {}, lambda server: server.average.params)


def test_adapters_and_heads_never_reach_the_server():
    task = federation.attention_task()
    private, joined = (identities.run(name, task=task) for name in ("fedperfix", "fedper"))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    adapters, others = split_params(shapes["body"], lambda path: "adapter" in path)
    assert jax.tree.structure(private.clients["body"]) == jax.tree.structure(adapters)
    assert jax.tree.structure(private.server.average.params) == jax.tree.structure({"body": others})
    averaged = split_params(joined.server.average.params, lambda path: "adapter" not in path)[0]
    assert federation.differ(private.server.average.params, averaged)


@pytest.mark.parametrize(
    "private, message",
    [
        ("Attention, Dance", "lists 'Dance', which is no layer of the model; .* Attention_0, "),
        ("body", "leaves no layer to share"),
    ],
)
def test_a_list_of_layers_that_does_not_fit_is_refused(private, message):
    with pytest.raises(UserError, match=f"^hparams.fedperfix.private {message}"):
        identities.run("fedperfix", task=federation.attention_task(), private=private)


def test_a_listed_layer_is_private_beside_adapters_and_head():
    task = federation.attention_task()
    outcome = identities.run("fedperfix", task=task, private="Attention")
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    shared = split_params(shapes["body"], lambda path: "Attention_0" in path)[1]
    assert jax.tree.structure(outcome.server.average.params) == jax.tree.structure({"body": shared})


def test_an_adapter_that_adds_nothing_leaves_the_transformer():
    shape, arguments = (4, 4, 1), {"patch": 2, "width": 4, "layers": 2, "heads": 2}
    adapted = models.MODELS["vit"](shape, 3, **arguments, adapter_width=3)
    alone = models.MODELS["vit"](shape, 3, **arguments)
    params = adapted.init(jax.random.key(0))
    adapters, others = split_params(params, adapted.is_adapter)
    assert jax.tree.structure(others) == jax.tree.structure(alone.init(jax.random.key(0)))
    assert len(jax.tree.leaves(adapters)) == 8  # two layers of an adapter in each of two blocks
    inputs = jax.random.normal(jax.random.key(1), (2, *shape))
    wanted = alone.features(others, inputs)

    def features(path_is_zero):
        changed = jax.tree.map_with_path(
            lambda path, leaf: 0 * leaf if path_is_zero(path) else leaf, params
        )
        return adapted.features(changed, inputs)

    def is_last(path):
        return [name.key for name in path[-3:-1]] == ["adapter", "Dense_1"]

    np.testing.assert_array_equal(features(is_last), wanted)
    assert np.max(np.abs(features(lambda path: False) - wanted)) > 1e-3


def test_the_block_of_the_authors_code():
    """Outputs of an attention with an adapter, and all gradients of a product with them."""
    theirs = trajectories.read_recent("FedPerfix-block.f64")

    def params_of(prefix):
        def layer(name):
            return {kind: theirs[f"{prefix}/{name}/{kind}"] for kind in ("kernel", "bias")}

        adapter = {"Dense_0": layer("down"), "Dense_1": layer("up")}
        return {"Dense_0": layer("qkv"), "Dense_1": layer("proj"), "adapter": adapter}

    module = Attention(heads=3, adapter_width=5, adapter_scale=1.5)
    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (params_of("params"), theirs["input"]))
        outputs, pull_back = jax.vjp(
            lambda params, inputs: module.apply({"params": params}, inputs), *arguments
        )
        close(outputs, theirs["output"])
        found = pull_back(jnp.asarray(theirs["cotangent"]))
        jax.tree.map(close, found, (params_of("grad"), theirs["grad/input"]))


def close(ours, theirs):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
