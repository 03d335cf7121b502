"""PROAR-PFed: personalized models beside an over-the-air average, with an adaptive number of steps.

Server: the model `w`, the state of its optimizer, and the number of all examples. Client: its
personalized model `v_k`.
Down: `w`. Up: `(theta_k - w) / tau_k`, weighted by examples (`sum`), through a noisy channel; `v_k`
never leaves the client.
Cost per client and round: one local training for `w`, whatever `tau_k`; `personal_epochs` for
`v_k`.

Written from the published papers alone: the authors' repository leaves out the personalized parts,
as content of a patent application.

References:
  Mao, Yener, "Personalized Over-the-Air Federated Learning with Personalized Reconfigurable
  Intelligent Surfaces", 2024, https://arxiv.org/abs/2401.12149.
  The journal version, https://arxiv.org/abs/2412.03514.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import aggregation, core
from pfljax.algorithms.ditto import with_personal_models
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, channel


class OverTheAirServer(NamedTuple):
    """Attributes:
    average: the model `w` and its optimizer's state.
    examples: `[]`, training examples of all clients; never changes.
    """

    average: averaging.ServerState
    examples: jax.Array


class Steps(NamedTuple):
    """Attributes:
    params: the model after the last step that counts.
    count: `[]` int32, number of steps that count.
    loss: `[]`, the sum of their losses.
    done: `[]` bool, whether the power suffices for this model.
    """

    params: core.Params
    count: jax.Array
    loss: jax.Array
    done: jax.Array


@checked
def proar_pfed(
    task: core.Task,
    local: core.LocalTraining,
    *,
    beta: Annotated[float, core.above(0)] = 50.0,
    power: Annotated[float, core.above(0)] = 1.0,
    snr_db: Annotated[float, core.between(-100, 200)] = 20.0,
    csi_error: Annotated[float, core.at_least(0)] = 0.1,
    elements: Annotated[int, core.at_least(0)] = 10,
    target_gain: Annotated[float, core.at_least(0)] = 15.0,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    personal_epochs: Annotated[int, core.at_least(1)] = 1,
    rate_factor: Annotated[float, core.above(0)] = 1.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Over-the-air averaging of normalized updates, beside Ditto's personalized models.

        h_k, k_k: the gain of client k's channel and its estimate;   alpha_k = n_k / sum_j n_j
        local steps from w;  tau_k = the first tau with (beta alpha_k)^2 ||w_tau - w||^2 <=
            power tau^2 |k_k|^2, or all steps of local training
        sum = sum_k alpha_k / tau_k Re(h_k conj(k_k)) / |k_k|^2 (w_tau - w) + N(0, sigma^2),
            sigma^2 = power 10^(-snr_db / 10) / beta^2
        w <- w + server_optimizer(-sum / sum_k alpha_k)
        v_k <- local training from v_k on L_k(v) + lam/2 ||v - w||^2

    Args:
      task: The model and its loss.
      local: The clients' local training of both models; its length bounds `tau_k`.
      beta: Factor of the clients' signals, 10 to 100 (authors' code: 50 to 100); more steps, and
        less noise in the sum.
      power: Maximum power of a client's signal, 0.1 to 10.
      snr_db: Power of a signal over that of the noise in an entry, in dB, 0 to 40; 200 is a channel
        without noise, as far as float32 is concerned.
      csi_error: Variance of the error in the estimate of a path's gain, 0 to 0.5; 0 is perfect
        channel state information.
      elements: Number of elements of each client's surface, 0 to 100; 0 is the direct path alone.
      target_gain: Gain that the phases of the surface aim at, 1 to 30.
      lam: As in Ditto.
      personal_epochs: As in Ditto.
      rate_factor: As in Ditto.
      server_optimizer: As in FedAvg; SGD's learning rate is the paper's global step size.

    Returns:
      The method; a client's state is its personalized model.

    Notes:
      Without noise and with perfect channel state information the sum is the normalized weighted
      mean of the clients' updates. The bodies of the papers were not at hand: the personalized
      part is Ditto's, as the abstract's multi-task learning suggests, and the rest follows the
      authors' code of the global part. In the latter all clients take part; here the sum is divided
      by the weights of the cohort. Channels are Rayleigh and drawn anew in every round, with equal
      path loss for all clients in place of the geometry of the authors' code. Each client has a
      surface of its own. Where the authors stop after one epoch at most, `local` decides. Steps
      after the `tau_k`-th are computed and left out. Noise could make running variances negative,
      so batch normalization is refused.
    """

    def init_server(population, key):
        params = task.init(key)
        total = jnp.sum(population.sizes).astype(tree.dtype(params))
        return OverTheAirServer(averaging.init(params, server_optimizer), total)

    def train(start, data, context, cost):
        """Returns the `Steps` until the power suffices; `cost` is that of a unit update."""

        def take_step(steps, params, loss):
            count = steps.count + 1
            energy = cost * tree.squared_distance(params, start)
            done = energy <= power * jnp.square(count).astype(energy.dtype)
            taken = Steps(params, count, steps.loss + loss, done)
            return tree.where(steps.done, steps, taken)

        def gradient(params, carry, batch, key):
            # `params` are those after the last step, whose loss was computed at the call before it.
            steps, loss, started = carry
            steps = tree.where(started, take_step(steps, params, loss), steps)
            loss, slope = jax.value_and_grad(task.loss)(params, batch, key)
            return loss, slope, (steps, loss, jnp.ones((), bool))

        zero = jnp.zeros((), tree.dtype(start))
        nothing = Steps(start, jnp.zeros((), jnp.int32), zero, jnp.zeros((), bool))
        carry = (nothing, zero, jnp.zeros((), bool))
        trained = core.descend(gradient, start, carry, data, context, local)
        steps, loss, started = trained.carry
        return tree.where(started, take_step(steps, trained.params, loss), steps)

    def client_update(server, client, data, context):
        start = server.average.params
        dtype = tree.dtype(start)
        share = data.size.astype(dtype) / jnp.maximum(server.examples, 1)
        gains = channel.of_client(context.child(0), elements, csi_error, target_gain, dtype)
        received, inverse_power = channel.inversion(*gains)
        steps = train(start, data, context.child(1), jnp.square(beta * share) * inverse_power)
        count = jnp.maximum(steps.count, 1)
        change = tree.subtract(steps.params, start)
        metrics = {
            "loss": core.weighted(steps.loss / count, steps.count > 0),
            "steps": steps.count.astype(dtype),
        }
        return core.ClientOutput(
            state=client,
            sum=core.weighted(tree.scale(received / count, change), share),
            metrics=metrics,
        )

    def server_update(server, uploads, cohort, context):
        average = averaging.apply(server.average, uploads.total, server_optimizer)
        return server._replace(average=average)

    average = core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
    )
    noise_std = power**0.5 * 10.0 ** (-snr_db / 20) / beta
    noisy = aggregation.apply(average, aggregation.over_the_air(noise_std=noise_std))
    settings = {"lam": lam, "personal_epochs": personal_epochs, "rate_factor": rate_factor}
    return with_personal_models(noisy, task, local, **settings)
