r"""Shows what the clients of a study have, before anything is trained.

    python experiments/partition.py --config=configs/quickstart.py --output=DIR \
        --config.data.partition=dirichlet --config.data.alpha=0.5

Prints how many examples and classes clients have, how unequal they are, and how far their label
distributions lie apart. With `--output` it also draws `partition_classes.png` (clients by classes),
`partition_sizes.png` (how many clients have how many examples) and `partition_distances.png`.
"""

from __future__ import annotations

import pathlib

from absl import flags

from pfljax.cli import app
from pfljax.data import statistics
from pfljax.errors import UserError
from pfljax.report import partitions
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_config()
    flags.DEFINE_string("output", None, "A directory for the pictures; none without it.")


def main() -> None:
    """Runs the command."""
    config = app.config()
    config_lib.check(config)
    dataset = experiment.build_dataset(config)
    found = statistics.measure(dataset)
    title = (
        f"{dataset.name}, {dataset.num_clients} clients"
        + (f" ({dataset.num_unseen} unseen)" if dataset.num_unseen else "")
        + f", {partitions.name_partition(config.data)}"
    )
    app.say(title)
    app.say(partitions.table(found))
    app.say(partitions.imbalance(found))
    if flags.FLAGS.output is not None:
        directory = pathlib.Path(flags.FLAGS.output)
        try:
            names = partitions.draw(directory, found, title, dataset.num_unseen)
        except OSError as error:
            raise UserError(
                f"The pictures cannot be written to {directory} ({error.strerror}); name another "
                "--output."
            ) from error
        app.say(f"{', '.join(names)} in {directory}")
