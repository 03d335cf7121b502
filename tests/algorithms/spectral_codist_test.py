"""Spectral co-distillation: gradients of spectra, and FedAvg beside local training without them."""

import batch_norm
import federation
import identities
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, World, rate_of, vector
from quadratics import ETA, MEANS, SHARE, STEPS, near

from pfljax.ops import spectra

GENERIC, PERSONAL, BETA, RHO = 2.0, 3.0, 0.3, 0.5
VALUES = {"generic_weight": GENERIC, "personal_weight": PERSONAL, "beta": BETA, "rho": RHO}
ALONE = {"generic_weight": 0.0, "personal_weight": 0.0}


def test_closed_form():
    # The transform of (a, b) is (a + b, a - b); the derivatives are written by hand.
    pairs = np.kron(np.eye(2), [[1, 1], [1, -1]])

    def slope(own, teacher, kept):
        """The gradient of KL(p || A / sum A), A = |pairs own|, over what is kept of A."""
        target = np.abs(pairs @ teacher) * kept
        amplitudes = np.abs(pairs @ own) * kept
        of_amplitudes = kept / amplitudes.sum() - target / target.sum() / np.abs(pairs @ own)
        return pairs.T @ (np.sign(pairs @ own) * of_amplitudes)

    start = quadratics.vector(
        quadratics.run_from_random_weights("fedavg", eta=0.0).server.params
    ).astype(float)
    first, everything = np.array([1, 1, 0, 0]), np.ones(4)
    w, v = start, np.tile(start, (3, 1))
    for _ in range(2):
        thetas = np.tile(w, (3, 1))
        for k in range(3):
            for _ in range(STEPS):
                pull = GENERIC * slope(thetas[k], v[k], first)
                thetas[k] -= ETA * (thetas[k] - MEANS[k] + pull)
            own = v[k].copy()
            for _ in range(STEPS):
                gap = own - thetas[k]
                pull = PERSONAL * slope(own, thetas[k], everything)
                pull = pull + BETA * gap / np.linalg.norm(gap)
                own -= ETA * (own - MEANS[k] + pull)
            v[k] = own
        w = SHARE @ thetas
    outcome = quadratics.run_from_random_weights("spectral_codist", rounds=2, **VALUES)
    near(quadratics.vector(outcome.server.params), w)
    near(quadratics.vector(outcome.clients), v)


@pytest.mark.parametrize("low_frequencies", [False, True])
def test_gradients_are_those_of_finite_differences(low_frequencies):
    layers = (("body", "Dense_0"), ("head",))
    with jax.enable_x64(True):
        teacher, own = (
            jax.tree.map(
                lambda leaf, seed=seed: np.random.default_rng(seed).normal(size=leaf.shape),
                federation.task().init(jax.random.key(0)),
            )
            for seed in (1, 2)
        )

        def loss(flat):
            target, mine = (
                spectra.spectrum(model, layers, 0.4, low_frequencies)
                for model in (teacher, unravel(flat))
            )
            return spectra.divergence(target, mine)

        flat, unravel = jax.flatten_util.ravel_pytree(own)
        found = np.asarray(jax.grad(loss)(flat))
        moved = flat + 1e-6 * np.concatenate([np.eye(flat.size), -np.eye(flat.size)])
        high, low = np.split(np.asarray(jax.vmap(loss)(moved)), 2)
        assert np.abs(found).max() > 1e-2
        np.testing.assert_allclose(found, (high - low) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_spectrum_keeps_the_first_layers_or_the_lowest_frequencies():
    layers = (("b",), ("a",))  # in the order of inputs, not of names
    params = {"a": {"bias": np.ones(4)}, "b": {"bias": np.ones(2), "kernel": np.eye(4, 2)}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    every = spectra.spectrum(params, layers, 1.0, False)
    amplitudes = [np.abs(np.fft.fft2(np.eye(4, 2))), np.abs(np.fft.fft(np.ones(2)))]
    amplitudes = vector(*amplitudes, np.abs(np.fft.fft(np.ones(4))))
    np.testing.assert_allclose(every, amplitudes / amplitudes.sum(), atol=1e-6)
    np.testing.assert_array_equal(spectra.spectrum(params, layers, 1.0, True), every)
    first = spectra.spectrum(params, layers, 0.5, False)
    assert not np.any(first[7:]) and np.sum(first[:7]) == pytest.approx(1)
    low = spectra.spectrum(params, layers, 0.5, True)
    # The constant term of each array; of 4 rows, those of up to a quarter of a cycle.
    np.testing.assert_array_equal(np.flatnonzero(low), [0, 2, 6, 8, 10])


def test_equal_and_zero_models_have_no_divergence_and_finite_gradients():
    layers, zero = (("a",),), {"a": {"kernel": jnp.zeros((3, 2))}}
    one = {"a": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)}}
    for teacher in (zero, one):
        for own in (zero, one):
            target = spectra.spectrum(teacher, layers, 1.0, False)
            value, slope = jax.value_and_grad(
                lambda params, target=target: spectra.divergence(
                    target, spectra.spectrum(params, layers, 1.0, False)
                )
            )(own)
            assert np.all(np.isfinite(slope["a"]["kernel"]))
            if teacher is not one or own is not zero:
                assert abs(value) < 1e-6 and np.abs(slope["a"]["kernel"]).max() < 1e-5


def test_without_distillation_is_fedavg_beside_local_training():
    alone = identities.run("spectral_codist", **ALONE, beta=0.0, join="initial")
    federation.assert_close(alone.server.params, identities.run("fedavg").server.params)
    federation.assert_close(alone.clients, identities.run("local").clients)
    generic = identities.run("spectral_codist", **{**ALONE, "generic_weight": 3.0}, beta=0.0)
    assert federation.differ(generic.server.params, alone.server.params)
    personal = identities.run(
        "spectral_codist", **{**ALONE, "personal_weight": 3.0}, beta=0.0, join="initial"
    )
    federation.assert_close(personal.server.params, alone.server.params)
    assert federation.differ(personal.clients, alone.clients)


@pytest.mark.parametrize("squared", [False, True])
def test_batch_norm(squared):
    def spectrum(model, fraction):
        body, top = model["body"], model["head"]
        arrays = [body["Dense_0"]["kernel"], body["Dense_0"]["bias"][None]]
        arrays += [body[plain.NORM]["bias"][None], body[plain.NORM]["scale"][None]]
        arrays += [top["kernel"], top["bias"][None]]
        amplitudes = jnp.concatenate([jnp.abs(jnp.fft.fft2(array)).ravel() for array in arrays])
        amplitudes = amplitudes[: int(fraction * len(amplitudes))]
        return amplitudes / jnp.sum(amplitudes)

    def divergence(model, teacher, fraction):
        p, q = spectrum(teacher, fraction), spectrum(model, fraction)
        return jnp.sum(p * jnp.log(jnp.maximum(p, 1e-12) / jnp.maximum(q, 1e-12)))

    def generic(model, x, y, personal):
        return plain.loss(model, x, y) + GENERIC * divergence(model, personal, RHO)

    def personal(model, x, y, common):
        gaps = jax.tree.map(jnp.subtract, plain.parameters(model), plain.parameters(common))
        gap = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gaps))
        term = gap / 2 if squared else jnp.sqrt(gap)
        return plain.loss(model, x, y) + PERSONAL * divergence(model, common, 1) + BETA * term

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            trained.append(plain.train(server.params, *plain.examples(k), generic, clients[k]))
            clients[k] = plain.train(clients[k], *plain.examples(k), personal, trained[-1])
        return batch_norm.fed_average(server, trained, ids)

    batch_norm.check("spectral_codist", one_round, squared=squared, **VALUES)


def test_plain_loop():
    order = [np.arange(39)[part] for part in (plain_loops.BODY_KERNEL, plain_loops.BODY_BIAS)] + [
        np.arange(39)[part] for part in (plain_loops.HEAD_KERNEL, plain_loops.HEAD_BIAS)
    ]
    shapes = [(5, 4), (1, 4), (4, 3), (1, 3)]

    def spectrum(w, count):
        arrays = [w[rows].reshape(shape) for rows, shape in zip(order, shapes, strict=True)]
        amplitudes = jnp.concatenate([jnp.abs(jnp.fft.fft2(a)).ravel() for a in arrays])[:count]
        return amplitudes / jnp.sum(amplitudes)

    def divergence(own, teacher, count):
        p, q = spectrum(teacher, count), spectrum(own, count)
        return jnp.sum(p * jnp.log(p / q))

    @jax.jit
    @jax.grad
    def generic(theta, x, y, v):
        return plain_loops.loss(theta, x, y) + GENERIC * divergence(theta, v, 19)

    @jax.jit
    @jax.grad
    def personal(v, x, y, theta):
        far = jnp.linalg.norm(v - theta)
        return plain_loops.loss(v, x, y) + PERSONAL * divergence(v, theta, 39) + BETA * far

    def loop(world: World):
        w, own = world.params, {}
        for r, cohort in enumerate(world.cohorts):
            thetas = {}
            for k in cohort:
                v = own.get(k, w)
                thetas[k] = world.train(
                    k, w, rate_of(r), gradient=lambda t, x, y, v=v: generic(t, x, y, v)
                )
                own[k] = world.train(
                    k, v, rate_of(r), gradient=lambda t, x, y, to=thetas[k]: personal(t, x, y, to)
                )
            w = plain_loops.mean(thetas)
            yield Round(w, dict(own), dict(own))

    plain_rounds.check("spectral_codist", loop, VALUES)
