"""Virtual time of co-distillation: how much a wait-free personalized model saves in a round.

    python experiments/wait_free.py --config=configs/CONFIG.py --config.data.dir=DIRECTORY

A client of spectral co-distillation trains two models in a round. The clock of a client, with the
time `T_k` of one local training and the time `c` of a download and an upload:

    in turn:    starts at s, has trained both at s + 2 T_k, and its upload arrives at s + 2 T_k + c
    wait-free:  uploads the generic model at s + T_k, which arrives at s + T_k + c, and trains the
                personalized one meanwhile; it is free again at s + 2 T_k
    the server updates when the last upload of the cohort has arrived; a client of the next cohort
    starts then, or when it is free again

The models of a round are the same in both. `T_k` is proportional to the client's steps and to a
speed `|z_k|`, `z_k` normal, as in `pfljax.ops.staleness`, with the mean 1 over clients. Prints the
mean time of a round in both ways, for cohorts of several sizes and several `c`, over
`config.rounds` rounds, mean over `config.seeds`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pfljax.cli import app
from pfljax.training.study import config_checks, experiment

_FRACTIONS = (0.1, 0.5, 1.0)
_COMMUNICATIONS = (0.0, 0.5, 1.0, 2.0, 4.0)


def finish(
    durations: np.ndarray,
    cohorts: Sequence[np.ndarray],
    communication: float,
    wait_free: bool,
) -> float:
    """Returns the time at which the last round ends, the first beginning at 0.

    Args:
      durations: `[N]`, the time of one local training of each client.
      cohorts: The clients of each round.
      communication: The time of a download and an upload.
      wait_free: Whether the personalized models train after the upload.
    """
    server, free = 0.0, np.zeros(len(durations))
    for cohort in cohorts:
        start, own = np.maximum(server, free[cohort]), durations[cohort]
        server = np.max(start + (1 if wait_free else 2) * own) + communication
        free[cohort] = start + 2 * own
    return server


def drawn_durations(steps: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns `[N]`, the times of clients with `steps` `[N]` local steps, of the mean 1."""
    times = steps * np.abs(draw.normal(size=len(steps)))
    return times / times.mean()


def rows(steps: np.ndarray, rounds: int, seeds: Sequence[int]) -> list[tuple[float, ...]]:
    """Returns cohort fraction, communication, and the mean time of a round in turn and wait-free.

    Args:
      steps: `[N]`, the numbers of local steps of the clients.
      rounds: Number of rounds.
      seeds: Seeds of the speeds and of the cohorts.
    """
    found = []
    for fraction in _FRACTIONS:
        size = max(1, round(fraction * len(steps)))
        for communication in _COMMUNICATIONS:
            times = []
            for seed in seeds:
                draw = np.random.default_rng(seed)
                durations = drawn_durations(steps, draw)
                cohorts = [draw.permutation(len(steps))[:size] for _ in range(rounds)]
                ends = [finish(durations, cohorts, communication, way) for way in (False, True)]
                times.append(np.array(ends) / rounds)
            found.append((fraction, communication, *np.mean(times, axis=0)))
    return found


def main():
    config = app.config()
    config_checks.check(config)
    dataset = experiment.build_dataset(config)
    sizes = dataset.train.sizes[: dataset.num_participants]
    steps = config.local_epochs * -(-sizes // config.batch_size)
    app.say("| cohort | communication | in turn | wait-free | speed-up |")
    app.say("| ---: | ---: | ---: | ---: | ---: |")
    for fraction, communication, before, after in rows(steps, config.rounds, config.seeds):
        cells = f"{before:.2f} | {after:.2f} | {before / after:.2f}"
        app.say(f"| {fraction:.0%} | {communication:g} | {cells} |")


if __name__ == "__main__":
    app.run(main, app.define_config)
