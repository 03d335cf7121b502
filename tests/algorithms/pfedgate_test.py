"""pFedGate: gates, the blocks that they keep, and what is sent of a model."""

import json

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
from plain_loops import Round, rate_of, vector
from quadratics import ETA, MEANS, SHARE, START, STEPS, near, personal_gaps

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.ops import gates

EPSILON = 1e-5


def normalized(values, mean, var):
    return (values - mean) / jnp.sqrt(var + EPSILON)


def forward(gate, x, train):
    """The scores `[n, L]` of rows `[n, d]` of one channel, and the next running statistics."""
    switch, norm = gate["switch"], gate["bn"]
    mean, var = x.mean(axis=1, keepdims=True), x.var(axis=1, ddof=1, keepdims=True)
    running = switch["running_mean"], switch["running_var"]
    seen = {}
    if train:
        batch = mean.mean(axis=0), (var + mean**2).mean(axis=0) - mean.mean(axis=0) ** 2
        moved = [0.9 * old + 0.1 * new for old, new in zip(running, batch, strict=True)]
        seen["switch"] = dict(zip(("running_mean", "running_var"), moved, strict=True))
        running = batch
    p, q = (jax.nn.softmax(switch[f"{name}_weight"]) for name in ("mean", "var"))
    # With one channel, the statistics of an example are those of its channel.
    x = normalized(
        x, (p[0] + p[1]) * mean + p[2] * running[0], (q[0] + q[1]) * var + q[2] * running[1]
    )
    z = (x * switch["scale"] + switch["bias"]) @ gate["linear"]["kernel"] + gate["linear"]["bias"]
    running = norm["running_mean"], norm["running_var"]
    if train:
        unbiased = z.var(axis=0, ddof=1) if len(z) > 1 else None
        seen["bn"] = {
            "running_mean": 0.9 * running[0] + 0.1 * z.mean(axis=0),
            "running_var": running[1] if unbiased is None else 0.9 * running[1] + 0.1 * unbiased,
        }
        running = z.mean(axis=0), z.var(axis=0)
    z = normalized(z, *running) * norm["scale"] + norm["bias"]
    return 1 / (1 + jnp.exp(-z)), seen


def mean_scores(gate, x, train):
    return forward(gate, x, train)[0].mean(axis=0)


def ids_of(shapes, count):
    """The block of each entry of the arrays `{path: shape}`, given in the order of their blocks."""
    ids, start = {}, 0
    for path, shape in shapes.items():
        entries = int(np.prod(shape))
        flat = start + np.arange(entries) // -(-entries // count)
        ids[path] = flat.reshape(shape[::-1]).T
        start = flat[-1] + 1
    return ids


def kept_blocks(ids, scores, density, floor, groups):
    """The blocks to keep, by a plain loop over the blocks of each group of paths."""
    kept = np.zeros(len(scores), bool)
    sizes = np.bincount(np.concatenate([part.ravel() for part in ids.values()]))
    for group in groups:
        blocks = np.unique(np.concatenate([ids[path].ravel() for path in group]))
        first = [ids[path].min() for path in group]
        kept[first] = True
        left = sizes[blocks].sum() - np.round((1 - density) * sizes[blocks].sum())
        left -= sizes[first].sum()
        tenths = np.round(10 * np.maximum(scores, floor))
        for block in sorted(set(blocks) - set(first), key=lambda b: (-tenths[b], b)):
            if sizes[block] <= left:
                kept[block] = True
                left -= sizes[block]
    return kept


def factors(raw, kept, floor):
    """What multiplies each block; its gradient is that of the scores."""
    score = jnp.maximum(raw, floor)
    return raw * (kept + score - jax.lax.stop_gradient(score))


def by_path(model, paths):
    """The arrays of a nested dict at some paths."""
    found = {}
    for path in paths:
        found[path] = model
        for name in path:
            found[path] = found[path][name]
    return found


def multiplied(model, ids, own):
    """A nested dict of arrays, of which those of `ids` are multiplied by their blocks' factors."""

    def one(path, leaf):
        names = tuple(key.key for key in path)
        return leaf * own[ids[names]] if names in ids else leaf

    return jax.tree.map_with_path(one, model)


class Plain:
    """Local training and the deployed model of a client, by a plain loop.

    Attributes:
      loss: `(model, x, y) -> []`.
      shapes: The shapes of the arrays with blocks, in the order of these.
      groups: The paths of each group.
      blocks: Number of blocks of an array.
      density: Fraction of the weights to keep.
    """

    def __init__(self, loss, shapes, groups, blocks, density):
        self.groups, self.density = groups, density
        self.floor = min(max(1 / blocks, 0.1), density)
        self.ids = ids_of(shapes, blocks)

        def objective(models, x, y, kept):
            raw = mean_scores(models[1], x, train=True)
            own = factors(raw, kept, self.floor)
            return loss(multiplied(models[0], self.ids, own), x, y)

        self.slope = jax.jit(jax.grad(objective))
        self.seen = jax.jit(lambda gate, x: forward(gate, x, train=True))

    def kept(self, raw):
        return kept_blocks(self.ids, np.asarray(raw), self.density, self.floor, self.groups)

    def step(self, model, gate, x, y, rate, factor):
        """A step of model and gate; returns them and the model that the step has used."""
        scores, seen = self.seen(gate, x)
        raw = scores.mean(axis=0)
        kept = self.kept(raw)
        slope, slope_of_gate = self.slope((model, gate), x, y, kept)
        used = multiplied(model, self.ids, factors(raw, kept, self.floor))
        gate = plain.axpy(-rate * factor, slope_of_gate, gate)
        gate = {name: {**gate[name], **seen.get(name, {})} for name in gate}
        return plain.axpy(-rate, slope, model), gate, used

    def deploy(self, model, gate, x):
        raw = mean_scores(gate, x, train=False)
        return multiplied(model, self.ids, factors(raw, self.kept(raw), self.floor))


@pytest.mark.parametrize("density, others", [(0.5, 0), (0.75, 1), (1.0, 2)])
def test_closed_form(density, others):
    """Two blocks of one weight in each of two arrays, and gates that stay as they are."""
    task = quadratics.quadratic()._replace(input_shape=(4,))
    method = ALGORITHMS["pfedgate"](
        task, quadratics.LOCAL, density=density, blocks=2, rate_factor=0.0
    )
    outcome = federation.run(
        method, data=quadratics.DATA, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    rows = np.split(quadratics.POINTS, quadratics.ENDS[:-1])
    of_each = [jax.tree.map(lambda leaf, k=k: leaf[k], outcome.clients) for k in range(3)]

    def scales(train):
        raw = np.stack([mean_scores(g, x, train) for g, x in zip(of_each, rows, strict=True)])
        kept = np.array([[True, False, True, False]] * 3)
        for mask, tenths in zip(kept, np.round(10 * np.maximum(raw[:, 1::2], 0.5)), strict=True):
            best = 1 + 2 * np.argsort(-tenths, kind="stable")
            mask[best[:others]] = True
        return raw * kept

    t, w = scales(train=True), START
    for _ in range(2):
        target = MEANS / np.where(t > 0, t, 1)
        w = SHARE @ np.where(t > 0, target + (1 - ETA * t**2) ** STEPS * (w - target), w)
    near(quadratics.vector(outcome.server.params), w)
    deployed = scales(train=False) * w
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))
    assert "global" not in outcome.scores
    # Four bytes for each selected weight and the weight of the client, and a bit for each block.
    np.testing.assert_allclose(outcome.metrics["upload_bytes"], 4 * (2 + others) + 4 + 4 / 8)
    np.testing.assert_allclose(outcome.metrics["kept"], (2 + others) / 4)


def test_with_gates_that_are_open_it_is_fedavg():
    local = federation.local_training(shuffle=False)
    method = ALGORITHMS["pfedgate"](federation.task(), local, density=1.0, rate_factor=0.0)

    def init_open(server, profile, key):
        gate = method.init_client(server, profile, key)
        return {**gate, "bn": {**gate["bn"], "bias": 0 * gate["bn"]["bias"] + 50}}

    average = identities.run("fedavg")
    opened = federation.run(method._replace(init_client=init_open))
    federation.assert_close(opened.server.params, average.server.params)
    federation.assert_close(opened.scores["personal"], average.scores["global"])
    gated = identities.run("pfedgate", density=1.0, rate_factor=0.0)
    assert federation.differ(gated.server.params, average.server.params)
    sparse = identities.run("pfedgate", density=0.4, rate_factor=0.0)
    assert federation.differ(sparse.server.params, gated.server.params)
    whole, some = (run.metrics["upload_bytes"] for run in (gated, sparse))
    assert np.all(some < whole) and np.all(gated.metrics["kept"] == 1)
    assert np.all(sparse.metrics["kept"] < 0.5)


BN_SHAPES = {
    ("body", "Dense_0", "kernel"): (5, 4),
    ("body", "Dense_0", "bias"): (4,),
    ("body", "BatchNorm_0", "bias"): (4,),
    ("body", "BatchNorm_0", "scale"): (4,),
    ("head", "kernel"): (4, 3),
    ("head", "bias"): (3,),
}


def test_batch_norm():
    *_, bias, scale, _, _ = BN_SHAPES
    groups = [[path for path in BN_SHAPES if path not in (bias, scale)], [bias, scale]]
    loop = Plain(plain.loss, BN_SHAPES, groups, blocks=3, density=0.6)

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            model, gate = server.params, clients[k]
            x, y = plain.examples(k)
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    moved, gate, used = loop.step(model, gate, u, v, plain.RATE, 1.5)
                    model = plain.with_statistics(moved, plain.observed(used, u))
            clients[k] = gate
            trained.append(model)
        return batch_norm.fed_average(server, trained, ids)

    def personal(server, client, x, y):
        return loop.deploy(server.params, client, x)

    settings = {"density": 0.6, "blocks": 3, "rate_factor": 1.5}
    batch_norm.check("pfedgate", one_round, personal=personal, **settings)


SHAPES = {
    ("body", "kernel"): (plain_loops.INPUTS, plain_loops.FEATURES),
    ("body", "bias"): (plain_loops.FEATURES,),
    ("head", "kernel"): (plain_loops.FEATURES, plain_loops.CLASSES),
    ("head", "bias"): (plain_loops.CLASSES,),
}


def test_plain_loop():
    def loss(model, x, y):
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(model)])
        return plain_loops.loss(flat, x, y)

    plain_gates = Plain(loss, SHAPES, [list(SHAPES)], blocks=4, density=0.7)

    def loop(world):
        w, own = world.server.params, {}
        starts = [jax.tree.map(lambda leaf, k=k: leaf[k], world.clients) for k in range(4)]
        for r, cohort in enumerate(world.cohorts):
            trained = {}
            for k in cohort:
                model, gate = w, own.get(k, starts[k])
                for x, y in world.batches(k):
                    model, gate, _ = plain_gates.step(model, gate, x, y, rate_of(r), 2.0)
                own[k], trained[k] = gate, model
            sizes = [plain_loops.SIZES[k] for k in cohort]
            w = plain.average(list(trained.values()), sizes)
            deployed = {
                k: plain_loops.flat(plain_gates.deploy(w, own.get(k, starts[k]), world.x[k]))
                for k in range(4)
            }
            states = {k: plain_loops.flat(gate) for k, gate in own.items()}
            yield Round(vector(*jax.tree.leaves(w)), states, deployed)

    settings = {"density": 0.7, "blocks": 4, "rate_factor": 2.0}
    plain_rounds.check("pfedgate", loop, settings, lambda server: server.params)


def test_the_authors_code_in_a_round_of_one_client():
    """The model, the gate and, for the test inputs as one batch, the factors of all blocks."""
    theirs = trajectories.read_recent("pFedGate.f64")
    data = trajectories.read_recent("data")
    start = trajectories.read_recent("init")
    with jax.enable_x64(True):
        start = {name: array.astype(np.float64) for name, array in start.items()}
        task = trajectories.task_from(trajectories.model_from(start, ""))
        settings = json.loads(str(theirs["meta"]))["hyperparameters"]
        local = trajectories.local_training(settings["lr_model"], settings["batch_size"])
        method = ALGORITHMS["pfedgate"](
            task,
            trajectories.clipped_local(local, settings),
            **trajectories.settings_of_pfedgate(settings),
        )
        examples = jax.tree.map(jnp.asarray, trajectories.examples_from(data))
        server = method.init_server(examples.population(), jax.random.key(0))
        context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(4), jnp.int32(0))
        gate = trajectories.gate_from(theirs, 0)
        output = jax.jit(method.update_client)(
            server, gate, examples.of_client(jnp.int32(0)), context
        )
        model = core.tree.add(server.params, core.mean(output.sum))
        found = dict(trajectories.names_of(model)), trajectories.names_of_gate(output.state)
        for kind, arrays in zip(("model/", ""), found, strict=True):
            for name, array in arrays.items():
                close(array, theirs[f"round0/client0/{kind}{name}"])
        inputs = jnp.asarray(data["client0/test_x"], jnp.float64)
        ones = jax.tree.map(jnp.ones_like, server.params)
        spread = method.adapt(
            {"model": ones, "gate": output.state}, inputs, jnp.ones(len(inputs), bool)
        )
        layout = gates.divide(task, 5)
        for part in layout.parts:
            (factors,) = by_path(spread, [part.path]).values()
            own = np.asarray(factors).T.ravel()[:: part.length]
            top = theirs["round0/test_top/client0"][part.start : part.start + part.count]
            close(own, top)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
