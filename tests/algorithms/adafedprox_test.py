"""AdaFedProx: FedProx whose weight follows the loss, and FedProx where it may not change."""

import batch_norm
import federation
import identities
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import quadratics
from plain_loops import Round, World, rate_of, slope, vector
from quadratics import ETA, MEANS, POINTS, SHARE, START, near, steps_towards


class Weight:
    """The weight of the proximal term, and the losses that it follows."""

    def __init__(self, mu, change, largest, patience):
        self.mu, self.losses, self.streak = mu, [], 0
        self.change, self.largest, self.patience = change, largest, patience

    def report(self, loss):
        if self.losses and loss > self.losses[-1]:
            self.mu, self.streak = min(self.mu + self.change, self.largest), 0
        elif self.losses and loss < self.losses[-1]:
            self.streak += 1
            if self.streak >= self.patience:
                self.mu = max(self.mu - self.change, 0.0)
        self.losses.append(loss)


SETTINGS = {"initial_mu": 0.4, "change": 0.3, "largest_mu": 1.2}


def start_of_weight(patience):
    return Weight(0.4, 0.3, 1.2, patience)


def test_closed_form():
    # Without a strong pull, a server step of five times the mean change overshoots ever further.
    w, weight, mus = START, start_of_weight(patience=2), []
    for _ in range(10):
        loss = 0.5 * np.mean(np.sum((w - POINTS) ** 2, axis=1))
        mus.append(weight.mu)
        rate = ETA * (1 + weight.mu)
        trained = steps_towards(w, (MEANS + weight.mu * w) / (1 + weight.mu), rate=rate)
        w = w + 5 * (SHARE @ trained - w)
        weight.report(loss)
    steps = np.diff(mus)
    assert max(steps) > 0.2 and min(steps) < -0.2 and max(mus) == 1.2
    outcome = quadratics.run(
        "adafedprox", 10, **SETTINGS, patience=2, server_optimizer=optax.sgd(5.0)
    )
    near(outcome.metrics["mu"], mus)
    near(outcome.server.loss, weight.losses[-1])
    near(quadratics.vector(outcome.server.average.params), w)


def test_without_change_is_fedprox_and_with_it_not():
    fixed = {"initial_mu": 1.0, "largest_mu": 1.0, "patience": 1}
    same = identities.run("adafedprox", change=0.0, **fixed).server.average
    federation.assert_close(same, identities.run("fedprox", mu=1.0).server)
    adapted = identities.run("adafedprox", change=0.7, **fixed).server
    assert adapted.mu < 0.5 and federation.differ(adapted.average.params, same.params)


def test_without_any_weight_is_fedavg():
    none = {"initial_mu": 0.0, "largest_mu": 0.0, "patience": 1}
    free = identities.run("adafedprox", change=0.7, **none).server.average
    federation.assert_close(free, identities.run("fedavg").server)


def test_batch_norm():
    weight = start_of_weight(patience=1)

    def one_round(server, clients, ids, found):
        w = server.average.params
        losses = [float(plain.loss(w, *plain.examples(k), train=False)) for k in ids]
        average = batch_norm.averaged(
            lambda w, x, y: plain.train(w, x, y, plain.pulled, w, weight.mu)
        )(server.average, clients, ids, found)
        weight.report(np.average(losses, weights=plain.sizes(ids)))
        return server._replace(
            average=average,
            mu=np.float64(weight.mu),
            loss=np.float64(weight.losses[-1]),
            has_loss=np.array(True),
            decreases=np.int32(weight.streak),
        )

    batch_norm.check("adafedprox", one_round, **SETTINGS, patience=1)
    assert weight.mu != SETTINGS["initial_mu"]


def test_plain_loop():
    def loop(world: World):
        w, weight = world.params, start_of_weight(patience=1)
        for r, cohort in enumerate(world.cohorts):

            def gradient(theta, x, y, w=w, mu=weight.mu):
                return slope(theta, x, y) + mu * (theta - w)

            losses = {k: np.array(plain_loops.loss(w, world.x[k], world.y[k])) for k in cohort}
            w = plain_loops.mean(
                {k: world.train(k, w, rate_of(r), gradient=gradient) for k in cohort}
            )
            weight.report(float(plain_loops.mean(losses)))
            yield Round(vector(w, weight.mu, weight.losses[-1], 1, weight.streak), {})

    plain_rounds.check("adafedprox", loop, {**SETTINGS, "patience": 1})
