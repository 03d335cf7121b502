"""Examples that the server holds: public data, or proxy data, that belong to no client."""

from __future__ import annotations

import numpy as np

from pfljax.data.dataset import ServerExamples
from pfljax.data.examples import Examples
from pfljax.data.input_arrays import by_name, map_inputs
from pfljax.data.split import stratified_choice
from pfljax.errors import UserError


def _choose(examples: Examples, fraction: float, seed: int) -> np.ndarray:
    """Returns `[n]` bool, a random fraction of a pool, at least one example."""
    # A stream that neither the partition nor the splits of this seed use.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(6,)))
    count = max(1, round(fraction * len(examples.targets)))
    return stratified_choice(examples.labels, count, rng)


def _rows(examples: Examples, chosen: np.ndarray) -> ServerExamples:
    inputs = map_inputs(lambda array: array[chosen], examples.inputs)
    return ServerExamples(inputs, examples.targets[chosen])


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, ServerExamples]:
    """Moves a random fraction of a pool to the server, before the pool is partitioned.

    Args:
      examples: The pool.
      fraction: The fraction of the examples, in (0, 1); at least one is moved.
      seed: The seed of the choice.

    Returns:
      The pool of the clients, and the examples of the server; each label keeps its fraction.

    Raises:
      UserError: The examples are in order of time, so that those of the server would share
        measurements with test examples.
    """
    if examples.time_gap is not None:
        raise UserError(
            f"The examples of {examples.name} are in order of time, and neighbours share "
            "measurements: choose another data set for the server in data.server_name."
        )
    chosen = _choose(examples, fraction, seed)
    kept = _rows(examples, ~chosen)
    of_rows = {
        name: None if (array := getattr(examples, name)) is None else array[~chosen]
        for name in ("owners", "item_of")
    }
    pool = examples._replace(inputs=kept.inputs, targets=kept.targets, **of_rows)
    return pool, _rows(examples, chosen)


def of_source(examples: Examples, fraction: float, seed: int) -> ServerExamples:
    """Returns a random fraction of a data set of which clients hold nothing.

    Args:
      examples: The pool of that data set.
      fraction: The fraction of the examples, in (0, 1].
      seed: The seed of the choice.
    """
    return _rows(examples, _choose(examples, fraction, seed))


def require_form(
    server: ServerExamples, clients: ServerExamples, num_classes: tuple[int, int] = (0, 0)
) -> None:
    """Raises a `UserError` where the server's examples have another form than the clients'.

    Args:
      server: The examples of the server.
      clients: Inputs and targets of the clients.
      num_classes: The numbers of classes of the two.
    """

    def form(examples):
        arrays = {**by_name(examples.inputs), "targets": examples.targets}
        return {name: (array.shape[1:], str(array.dtype)) for name, array in arrays.items()}

    found, wanted = form(server), form(clients)
    if found != wanted or num_classes[0] != num_classes[1]:
        raise UserError(
            f"The server's examples have the form {found} and {num_classes[0]} classes, and the "
            f"clients' {wanted} and {num_classes[1]}: choose a data set of the same form in "
            "data.server_name."
        )
