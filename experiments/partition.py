"""Shows what the clients of a study have, before anything is trained.

    python experiments/partition.py --config=configs/quickstart.py --output=DIR \\
        --config.data.partition=dirichlet --config.data.alpha=0.5

Prints how many examples and classes clients have, how unequal they are, and how far their label
distributions lie apart. With `--output` it also draws `partition_classes.png` (clients by classes),
`partition_sizes.png` (how many clients have how many examples) and `partition_distances.png`.
"""

from __future__ import annotations

import pathlib

import binary
from absl import flags

from pfljax.data import statistics
from pfljax.errors import UserError
from pfljax.training import config as config_lib
from pfljax.training import experiment, partition_report

binary.define_config()
_OUTPUT = flags.DEFINE_string("output", None, "A directory for the pictures; none without it.")


def main():
    config = binary.config()
    config_lib.check(config)
    dataset = experiment.build_dataset(config)
    found = statistics.measure(dataset)
    title = (
        f"{dataset.name}, {dataset.num_clients} clients"
        + (f" ({dataset.num_unseen} unseen)" if dataset.num_unseen else "")
        + f", {partition_report.name_partition(config.data)}"
    )
    binary.say(title)
    binary.say(partition_report.table(found))
    binary.say(partition_report.imbalance(found))
    if _OUTPUT.value is not None:
        directory = pathlib.Path(_OUTPUT.value)
        try:
            names = partition_report.draw(directory, found, title, dataset.num_unseen)
        except OSError as error:
            raise UserError(
                f"The pictures cannot be written to {directory} ({error.strerror}); name another "
                "--output."
            ) from error
        binary.say(f"{', '.join(names)} in {directory}")


if __name__ == "__main__":
    binary.run(main)
