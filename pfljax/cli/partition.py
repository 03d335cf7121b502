r"""Shows the partition of a config: sizes, classes and heterogeneity of its clients.

    python experiments/partition.py --config=configs/quickstart.py --output=DIR \
        --config.data.partition=dirichlet --config.data.alpha=0.5

Prints the numbers of examples and classes per client, their imbalance, and the distances between
label distributions. With `--output`, also draws `partition_classes.png` (clients by classes),
`partition_sizes.png` (histogram of the client sizes) and `partition_distances.png`.
"""

from __future__ import annotations

import pathlib

from absl import flags

from pfljax.cli import app
from pfljax.data import statistics
from pfljax.errors import UserError
from pfljax.report import partitions
from pfljax.training.study import config_checks, experiment


def define_flags() -> None:
    """Defines the flags of this command."""
    app.define_config()
    flags.DEFINE_string("output", None, "Directory for the plots; without it, none are drawn.")


def main() -> None:
    """Runs the command."""
    config = app.config()
    config_checks.check(config)
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
                f"The plots cannot be written to {directory} ({error.strerror}); choose another "
                "--output."
            ) from error
        app.say(f"{', '.join(names)} in {directory}")
