"""Simulated users: each weighs several rewards of an answer, and prefers the larger sum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfljax.data import checks
from pfljax.data.examples import Examples
from pfljax.errors import UserError


class Simulation(NamedTuple):
    """Users, answers and preferences whose truth is known.

    Attributes:
      features: `[prompts, answers, d]` float32, what models see of an answer.
      rewards: `[prompts, answers, R]`, of mean 0 and deviation 1 over all answers.
      weights: `[users, R]`, the weights of a user, which sum to 1.
      user: `[n]` int32, the user of each pair, in order.
      prompt: `[n]` int32, the prompt of each pair.
      chosen: `[n]` int32, the preferred answer of the prompt.
      rejected: `[n]` int32, the other one.
    """

    features: np.ndarray
    rewards: np.ndarray
    weights: np.ndarray
    user: np.ndarray
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """`[n]`, the true reward of the preferred answer minus that of the other one."""
        gaps = self.rewards[self.prompt, self.chosen] - self.rewards[self.prompt, self.rejected]
        return np.sum(gaps * self.weights[self.user], axis=1)

    @property
    def inputs(self) -> np.ndarray:
        """`[n, 2, d]`, the features of both answers of each pair, the preferred one first."""
        both = np.stack([self.chosen, self.rejected], axis=1)
        return self.features[self.prompt[:, None], both]


def standardized(rewards: np.ndarray) -> np.ndarray:
    """Returns rewards `[..., R]` with mean 0 and deviation 1 over all answers, each of the `R`."""
    rows = rewards.reshape(-1, rewards.shape[-1])
    deviation = rows.std(axis=0)
    return (rewards - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def dirichlet_users(users: int, rewards: int, alpha: float, seed: int) -> np.ndarray:
    """Returns `[users, rewards]` float64, weights that sum to 1, drawn from Dirichlet(alpha).

    Args:
      users: Number of users.
      rewards: Number of rewards.
      alpha: Concentration, above 0; near 0 a user has one reward only, and with large values all
        users have equal weights.
      seed: The seed of the draw.
    """
    return np.random.default_rng(seed).dirichlet(np.full(rewards, alpha), size=users)


def draw_pairs(
    rewards: np.ndarray, weights: np.ndarray, pairs: int, temperature: float, seed: int
) -> dict[str, np.ndarray]:
    """Returns the fields `user`, `prompt`, `chosen` and `rejected` of a `Simulation`.

        r_u(x) = <w_u, rewards(x)>
        P(x is preferred to x') = sigmoid((r_u(x) - r_u(x')) / temperature)

    Args:
      rewards: `[prompts, answers, R]`, two answers or more.
      weights: `[users, R]`.
      pairs: Number of pairs of each user, of two different answers of a random prompt.
      temperature: 0 for users who always prefer the larger reward.
      seed: The seed of all draws.
    """
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(weights), dtype=np.int32), pairs)
    prompt = rng.integers(len(rewards), size=len(user)).astype(np.int32)
    first = rng.integers(rewards.shape[1], size=len(user))
    second = (first + rng.integers(1, rewards.shape[1], size=len(user))) % rewards.shape[1]
    margin = np.sum((rewards[prompt, first] - rewards[prompt, second]) * weights[user], axis=1)
    noise = rng.logistic(size=len(user))
    swapped = margin + temperature * noise < 0
    return {
        "user": user,
        "prompt": prompt,
        "chosen": np.where(swapped, second, first).astype(np.int32),
        "rejected": np.where(swapped, first, second).astype(np.int32),
    }


def simulate(
    *,
    users: int = 1000,
    pairs: int = 16,
    prompts: int = 200,
    answers: int = 8,
    width: int = 16,
    rewards: int = 10,
    alpha: float = 0.1,
    temperature: float = 0.0,
    seed: int = 0,
) -> Simulation:
    """Returns simulated users; see `load_simulated_preferences` for the arguments."""
    names = {"users": users, "pairs": pairs, "prompts": prompts, "width": width}
    option = "data.options.simulated_preferences"
    for name, value in {**names, "rewards": rewards}.items():
        checks.whole(f"{option}.{name}", value, 1, 10_000_000)
    checks.whole(f"{option}.answers", answers, 2, 10_000)
    checks.number(f"{option}.temperature", temperature, 0, 1e6)
    if not 0 < alpha <= 1e6:
        raise UserError(f"{option}.alpha is {alpha}; it must be above 0 and at most 1e6.")
    rng = np.random.default_rng(checks.whole(f"{option}.seed", seed, 0))
    features = rng.normal(size=(prompts, answers, width)).astype(np.float32)
    of_answers = standardized(features @ rng.normal(size=(width, rewards)))
    weights = dirichlet_users(users, rewards, alpha, seed + 1)
    drawn = draw_pairs(of_answers, weights, pairs, temperature, seed + 2)
    return Simulation(features, of_answers, weights, **drawn)


def load_simulated_preferences(
    data_dir: str = "",
    *,
    users: int = 1000,
    pairs: int = 16,
    prompts: int = 200,
    answers: int = 8,
    width: int = 16,
    rewards: int = 10,
    alpha: float = 0.1,
    temperature: float = 0.0,
    seed: int = 0,
) -> Examples:
    """Returns preferences of simulated users, who weigh rewards that are linear in the features.

        w_u ~ Dirichlet(alpha);  x ~ N(0, I_width);  r_u(x) = <w_u, standardized A^T x>
        P(x is preferred to x') = sigmoid((r_u(x) - r_u(x')) / temperature)

    Args:
      data_dir: Ignored.
      users: Number of users, the clients.
      pairs: Number of pairs of each user.
      prompts: Number of prompts, which all users share.
      answers: Number of answers of a prompt.
      width: Number of features of an answer.
      rewards: Number of rewards.
      alpha: Concentration of the weights; near 0 a user has one reward only, and with large values
        all users agree.
      temperature: Randomness of the preferences; with 0 the true reward predicts all of them.
      seed: The seed of all random numbers.

    Returns:
      Examples for a preference: inputs `[n, 2, width]` float32, the preferred answer first.

    Raises:
      UserError: An option is invalid.

    Notes:
      The users are those of PersonalLLM, whose ten rewards are reward models of texts; here they
      are random linear functions of normal features. Users with nearly equal weights are kept.

    References:
      Zollo, Siah, Ye, Li, Namkoong, "PersonalLLM: Tailoring LLMs to Individual Preferences", 2025,
      https://arxiv.org/abs/2409.20296.

    >>> load_simulated_preferences(users=3, pairs=5).inputs.shape
    (15, 2, 16)
    """
    settings = {"users": users, "pairs": pairs, "prompts": prompts, "answers": answers}
    settings |= {"width": width, "rewards": rewards, "alpha": alpha}
    found = simulate(**settings, temperature=temperature, seed=seed)
    return Examples(
        name="simulated_preferences",
        inputs=found.inputs,
        targets=np.zeros(len(found.user), np.int32),
        num_classes=0,
        task="preference",
        owners=found.user,
    )
