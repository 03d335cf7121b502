"""Preference optimization: losses of pairs of answers, and scores of answers by private examples.

Shapes in the docstrings: `B` pairs, `P` prompts with `J` answers each, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Added to a probability by which a ratio of edited tokens is divided.
_LEAST_PROBABILITY = 1e-6


def bradley_terry(margins: jax.Array) -> jax.Array:
    """Returns `[B]`, the negative log-likelihood of the chosen answers in the Bradley-Terry model.

        -log sigmoid(r(chosen) - r(rejected))

    Args:
      margins: `[B]`, the reward of the chosen answer minus that of the rejected one.

    References:
      Bradley, Terry, "Rank Analysis of Incomplete Block Designs", 1952,
      https://doi.org/10.2307/2334029.
    """
    return jax.nn.softplus(-margins)


def dpo(margins: jax.Array, beta: float | jax.Array) -> jax.Array:
    """Returns `[B]`, the losses of direct preference optimization.

        -log sigmoid(beta u),   u = log pi(chosen)/ref(chosen) - log pi(rejected)/ref(rejected)

    Args:
      margins: `[B]`, the differences `u` of log-ratios.
      beta: Strength of the implicit divergence to the reference; `beta = 1` is `bradley_terry`.

    References:
      Rafailov, Sharma, Mitchell, Ermon, Manning, Finn, "Direct Preference Optimization: Your
      Language Model is Secretly a Reward Model", 2023, https://arxiv.org/abs/2305.18290.
    """
    return bradley_terry(beta * margins)


def cdpo(margins: jax.Array, beta: float | jax.Array, smoothing: float | jax.Array) -> jax.Array:
    """Returns `[B]`, the losses of conservative DPO, which assumes that some labels are wrong.

        -(1 - eps) log sigmoid(beta u) - eps log sigmoid(-beta u)

    The minimum is at `sigmoid(beta u) = 1 - eps`, not at infinity.

    Args:
      margins: `[B]`, the differences `u` of log-ratios, as in `dpo`.
      beta: As in `dpo`.
      smoothing: The probability `eps` of a wrong label, in [0, 0.5]; 0 is `dpo`.

    References:
      Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023,
      https://ericmitchell.ai/cdpo.pdf.
    """
    kept, flipped = dpo(margins, beta), dpo(-margins, beta)
    return (1 - smoothing) * kept + smoothing * flipped


def ipo(margins: jax.Array, beta: float | jax.Array) -> jax.Array:
    """Returns `[B]`, the losses of identity preference optimization.

        (u - 1 / (2 beta))^2

    Args:
      margins: `[B]`, the differences `u` of log-ratios, as in `dpo`.
      beta: Strength of the divergence to the reference, above 0.

    References:
      Azar, Rowland, Piot, Guo, Calandriello, Valko, Munos, "A General Theoretical Paradigm to
      Understand Learning from Human Preferences", 2023, https://arxiv.org/abs/2310.12036.
    """
    return (margins - 1 / (2 * beta)) ** 2


def wins(margins: jax.Array) -> jax.Array:
    """Returns 1 for a positive margin, 0 for a negative one, and one half for zero.

    Args:
      margins: The reward of the chosen answer minus that of the other one, of any shape.
    """
    return (margins > 0) + 0.5 * (margins == 0)


# `(margins [B], beta, smoothing) -> [B]`, by the names of `config.preference.loss`.
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "bradley_terry": lambda margins, beta, smoothing: bradley_terry(margins),
    "dpo": lambda margins, beta, smoothing: dpo(margins, beta),
    "cdpo": cdpo,
    "ipo": lambda margins, beta, smoothing: ipo(margins, beta),
}


def on_and_off_policy(
    log_probs: jax.Array,
    behaviour: jax.Array,
    advantages: jax.Array,
    edited: jax.Array,
    mask: jax.Array,
    *,
    clip: float | jax.Array = 0.2,
    edited_clip: float | jax.Array = jnp.inf,
) -> jax.Array:
    """Returns `[]`, the mean policy loss over the tokens of own answers and of edited ones.

        own:     -min(rho A, clip(rho, 1 - c, 1 + c) A),   rho = pi(a) / pi_old(a)
        edited:  -min(rho A, clip(rho, 1 - e, 1 + e) A),   rho = pi(a) / (pi_edit(a) + 1e-6)

    Args:
      log_probs: `[..., T]`, the log-probability of each token under the policy that is trained.
      behaviour: `[..., T]`, that under the policy which wrote the token: for own answers an earlier
        version of the policy, for edited ones the policy that saw the critique. It is constant.
      advantages: `[..., T]`, the advantages `A`, which are constant.
      edited: `[..., T]` bool, whether a token belongs to an edited answer.
      mask: `[..., T]` bool, False for padding.
      clip: Largest change `c` of the ratio of an own token, 0.1 to 0.3.
      edited_clip: Largest change `e` of the ratio of an edited token; infinity does not clip.

    References:
      Zhu, Tao, Wang, Ding, Jiang, Zhou, "Towards Faithful and Controllable Personalization via
      Critique-Post-Edit Reinforcement Learning", 2025, https://arxiv.org/abs/2510.18849.
    """
    behaviour, advantages = jax.lax.stop_gradient((behaviour, advantages))
    # Padding has the ratio 1, so that no exponential of it overflows.
    log_probs, behaviour = (jnp.where(mask, x, 0) for x in (log_probs, behaviour))
    # The branch that is not selected may overflow, which would turn its zero gradient into NaN.
    own = jnp.exp(jnp.where(edited, 0, log_probs - behaviour))
    off = jnp.exp(log_probs) / (jnp.exp(jnp.where(edited, behaviour, 0)) + _LEAST_PROBABILITY)
    ratio = jnp.where(edited, off, own)
    width = jnp.where(edited, edited_clip, clip)
    clipped = jnp.clip(ratio, 1 - width, 1 + width)
    losses = -jnp.minimum(ratio * advantages, clipped * advantages)
    return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)


def similarity_scores(answers: jax.Array, own: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[P, J]`, a client's scores of generated answers, a vector of norm 1 or 0.

        s_pj = sum over own examples x of cos(answer_pj, x)
        standardized over all P J scores, then divided by max(1, norm)

    The norm of standardized scores is `sqrt(P J)`, so that every client sends a unit vector, and
    the sum over clients changes by at most 1 where a client is removed. Equal scores give zeros.

    Args:
      answers: `[P, J, d]`, embeddings of the answers.
      own: `[n, d]`, embeddings of the client's private examples.
      mask: `[n]` bool, False for padding.

    References:
      Hou, Wang, Zhu, Lazar, Fanti, "POPri: Private Federated Learning using Preference-Optimized
      Synthetic Data", 2025, https://arxiv.org/abs/2504.16438.
    """
    direction = jnp.where(mask[:, None], _unit(own), 0).sum(axis=0)
    scores = _unit(answers) @ direction
    centered = scores - jnp.mean(scores)
    variance = jnp.mean(centered**2)
    # Rounding leaves equal scores a variance of about the square of the machine's precision.
    noise = (8 * jnp.finfo(scores.dtype).eps * jnp.max(jnp.abs(scores))) ** 2
    varies = variance > noise
    standardized = jnp.where(varies, centered / jnp.sqrt(jnp.where(varies, variance, 1)), 0)
    norm = jnp.sqrt(jnp.sum(jnp.where(varies, standardized, 1) ** 2))
    return standardized / jnp.maximum(norm, 1)


def _unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors `[..., d]` divided by their norms; a vector of zeros stays."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.where(squared > 0, squared, 1))


def noisy_sum(scores: jax.Array, noise_multiplier: float | jax.Array, key: jax.Array) -> jax.Array:
    """Returns `[P, J]`, the sum of clients' scores with normal noise: the Gaussian mechanism.

        sum_k s_k + noise_multiplier N(0, I),   ||s_k|| <= 1

    Args:
      scores: `[N, P, J]`, each client's scores, of norm 1 at most.
      noise_multiplier: Standard deviation of the noise, in units of the sensitivity 1.
      key: Typed PRNG key of the noise.
    """
    total = jnp.sum(scores, axis=0)
    return total + noise_multiplier * jax.random.normal(key, total.shape, total.dtype)


class Ranked(NamedTuple):
    """The answers of each prompt that are compared.

    Attributes:
      chosen: `[P]` int32, the index of the chosen answer.
      rejected: `[P]` int32, the index of the rejected answer.
    """

    chosen: jax.Array
    rejected: jax.Array


def ranked_pairs(scores: jax.Array, chosen_rank: int = 1, rejected_rank: int = 5) -> Ranked:
    """Returns the answers of each prompt with two ranks, on which the server trains by `dpo`.

    Args:
      scores: `[P, J]`; of equal scores the first answer has the better rank.
      chosen_rank: Rank of the chosen answer, counted from 1 for the largest score.
      rejected_rank: Rank of the rejected answer, in (`chosen_rank`, J].
    """
    order = jnp.argsort(-scores, axis=-1, stable=True).astype(jnp.int32)
    return Ranked(order[:, chosen_rank - 1], order[:, rejected_rank - 1])
