"""FedKD: mutual distillation between a mentor and a small mentee, and truncated uploads."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import quadratics
from quadratics import ENDS, ETA, LABELED, LABELS, PLAN, POINTS, SIZES, STEPS, near, softmax

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.ops import averaging


def leading_ranks(matrix, energy):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    share = np.cumsum(values**2) / max(np.sum(values**2), 1e-30)
    rank = min(1 + np.sum(share <= energy), len(values))
    return left[:, :rank] * values[:rank] @ right[:rank], rank


def test_closed_form():
    # The gradient of KL(p || softmax(f)) in f is softmax(f) - p, as for the cross-entropy.
    task, weight, hidden, energies = (
        quadratics.linear_classifier(),
        0.7,
        1.3,
        (0.6, 0.75),
    )  # halfway, and the end
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    algorithm = ALGORITHMS["fedkd"](
        task, local, distillation=weight, hidden=hidden, energy_start=0.45, energy_end=0.75
    )
    server = algorithm.init_server(None, jax.random.key(0))
    start = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(server.params)]  # W, K
    clients = []
    for k in range(3):
        key = streams.key_of(jax.random.key(0), streams.CLIENT_INIT, k)
        bridge = algorithm.init_client(server, None, key).bridge
        clients.append([*start, np.asarray(bridge, np.float64)])
    shared, ranks = start, []
    for energy in energies:
        changes = []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, hot = POINTS[end - n : end], np.eye(4)[LABELS[end - n : end]]
            (w, head, bridge), (w_g, head_g) = clients[k], shared
            for _ in range(STEPS):
                z, z_g = x @ w, x @ w_g
                p, p_g = softmax(z @ head), softmax(z_g @ head_g)
                scale = -np.sum(hot * (np.log(p) + np.log(p_g))) / n
                logits = (p - hot + weight / scale * (p - p_g)) / n
                logits_g = (p_g - hot + weight / scale * (p_g - p)) / n
                gap = hidden * (z - z_g @ bridge) / (n * scale)  # times 2 / d, which is 1
                w, head, w_g, head_g, bridge = (
                    w - ETA * x.T @ (logits @ head.T + gap),
                    head - ETA * z.T @ logits,
                    w_g - ETA * x.T @ (logits_g @ head_g.T - gap @ bridge.T),
                    head_g - ETA * z_g.T @ logits_g,
                    bridge + ETA * z_g.T @ gap,
                )
            clients[k] = [w, head, bridge]
            cut = [
                leading_ranks(new - old, energy)
                for new, old in zip((w_g, head_g), shared, strict=True)
            ]
            changes.append([matrix for matrix, _ in cut])
            ranks.append([rank for _, rank in cut])
        means = [np.mean(matrices, axis=0) for matrices in zip(*changes, strict=True)]
        cut = [leading_ranks(matrix, energy) for matrix in means]
        shared = [old + matrix for old, (matrix, _) in zip(shared, cut, strict=True)]
    assert {1, 2} == set(np.ravel(ranks)), "the test should cut some and keep some"
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    for ours, expected in zip(jax.tree.leaves(outcome.server.params), shared, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    states = [outcome.clients.mentor["body"]["w"], outcome.clients.mentor["head"]["kernel"]]
    for ours, *expected in zip((*states, outcome.clients.bridge), *clients, strict=True):
        np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-4, atol=1e-5)
    sent = [4 * (sum(min(7 * rank, 8) for rank in row) + 1) for row in ranks]  # and the weight
    near(outcome.metrics["upload_bytes"], np.mean(np.reshape(sent, (2, 3)), axis=1))


def test_without_distillation_is_local_training_beside_fedavg():
    apart = {"distillation": 0.0, "hidden": 0.0, "energy_start": 1.0, "energy_end": 1.0}
    apart["join"] = "initial"  # as in local training, which has no common model
    fedkd = identities.run("fedkd", weight_by_size=True, **apart)
    federation.assert_close(fedkd.server.params, identities.run("fedavg").server.params)
    federation.assert_close(fedkd.clients.mentor, identities.run("local").clients)
    whole = 4 * (core.tree.size(fedkd.server.params) + 1)  # and the weight
    np.testing.assert_array_equal(fedkd.metrics["upload_bytes"], whole)
    cut = identities.run("fedkd", weight_by_size=True, **{**apart, "energy_start": 0.5})
    assert federation.differ(cut.server.params, fedkd.server.params)
    sent = cut.metrics["upload_bytes"]
    assert np.all(sent[:-1] < whole) and sent[-1] == whole
    for change in ({"distillation": 1.0}, {"hidden": 1.0}):
        other = identities.run("fedkd", weight_by_size=True, **{**apart, **change})
        assert federation.differ(other.clients.mentor, fedkd.clients.mentor)
        assert federation.differ(other.server.params, fedkd.server.params)


def test_shares_a_smaller_model():
    small = tasks.classification(
        models.mlp((federation.NUM_FEATURES,), 3, widths=(2,)), num_classes=3
    )
    outcome = identities.run("fedkd", mentee=small)
    assert outcome.server.params["head"]["kernel"].shape == (2, 3)
    assert outcome.clients.mentor["head"]["kernel"].shape == (9, 4, 3)
    assert outcome.clients.bridge.shape == (9, 2, 4)
    assert set(outcome.scores) == {"personal"}


def test_batch_norm():
    distillation, hidden = 0.7, 1.5

    def kl(target, of):
        target, of = jax.nn.log_softmax(target), jax.nn.log_softmax(of)
        return jnp.mean(jnp.sum(jnp.exp(target) * (target - of), axis=1))

    def objective(both, x, y):
        fixed = jax.lax.stop_gradient
        z, z_shared = (plain.features(both[name], x, True) for name in ("mentor", "mentee"))
        f, f_shared = plain.head(both["mentor"], z), plain.head(both["mentee"], z_shared)
        own, other = (jnp.mean(plain.entropies(out, y)) for out in (f, f_shared))
        mapped, scale = z_shared @ both["bridge"], fixed(own + other)
        own += (
            distillation * kl(fixed(f_shared), f) + hidden * jnp.mean((z - fixed(mapped)) ** 2)
        ) / scale
        other += (
            distillation * kl(fixed(f), f_shared) + hidden * jnp.mean((fixed(z) - mapped) ** 2)
        ) / scale
        return own + other

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            both = {**clients[k]._asdict(), "mentee": server.params}
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = plain.gradient(objective)(both, u, v)
                    moved = {n: plain.step(both[n], slope[n], u) for n in ("mentor", "mentee")}
                    both = {**moved, "bridge": both["bridge"] - plain.RATE * slope["bridge"]}
            clients[k] = clients[k]._replace(mentor=both["mentor"], bridge=both["bridge"])
            trained.append(both["mentee"])
        return batch_norm.fed_average(server, trained, ids, [1] * len(ids))

    weights = {"distillation": distillation, "hidden": hidden}
    batch_norm.check("fedkd", one_round, energy_start=1.0, energy_end=1.0, **weights)


def test_batch_norm_of_a_smaller_mentee():
    network = models.mlp_bn((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=(2,))
    mentee = tasks.classification(network, num_classes=federation.NUM_CLASSES)
    x, _ = plain.examples(1)  # one batch
    for mentor, observe in ((batch_norm.TASK, batch_norm.TASK.observe), (federation.task(), None)):
        local = batch_norm.LOCAL._replace(observe=observe, epochs=1)
        algorithm = ALGORITHMS["fedkd"](mentor, local, mentee=mentee, energy_start=1.0)
        server, _, output = batch_norm.one_client_update(algorithm, 1)
        model = averaging.apply(server, output.sum.message, averaging.PLAIN).params
        wanted = plain.observed(server.params, jnp.float32(x))
        federation.assert_close(plain.statistics(model), wanted)
