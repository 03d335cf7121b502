"""Scores of the clients of a comparison: their spread, and the gain over a reference method.

    python experiments/users.py --workdir=WORKDIR --against=fedavg \\
        [--groups=FILE.csv] [--group=NAME] [--unseen]

WORKDIR is that of compare.py, or with scenarios that of one of them; nothing is trained. With
`--against=SUBDIRECTORY/METHOD`, WORKDIR is the directory of the work directories of several
comparisons on the same data, which may have different models. Prints a table in Markdown and writes
it to `WORKDIR/users.md`: for each method the mean over clients, the personalization bias (standard
deviation over clients), the worst decile, the mean gain over the reference method with the 95 %
interval of a paired bootstrap over clients, the fraction of clients that gain, and the rank
correlation of the gain with the number of training examples. Groups come from a file with the
columns `client` and `group`, or with the data set, by an attribute such as 'gender' that it knows
of its clients; the table then has the gap between the groups with 15 clients or more. With
`--unseen`, the clients are those held out from training (`config.data.unseen_fraction`).
"""

from __future__ import annotations

import pathlib

from absl import flags

from pfljax.cli import app
from pfljax.errors import UserError
from pfljax.report import clients
from pfljax.training.run import writers


def define_flags() -> None:
    """Defines the flags of this script."""
    flags.DEFINE_string("workdir", None, "The work directory of a comparison.")
    flags.DEFINE_string("against", "fedavg", "The method over which gains are computed.")
    flags.DEFINE_string("groups", None, "A CSV file with the columns client and group.")
    flags.DEFINE_string("group", None, "An attribute of clients that the data set knows.")
    flags.DEFINE_list(
        "metrics",
        [],
        "The metrics of the personalization bias, the first one for all other columns; the score "
        "of the runs by default.",
    )
    flags.DEFINE_bool("unseen", False, "Compare held-out clients, which never train.")
    flags.DEFINE_integer("seed", 0, "The seed of the bootstrap.", lower_bound=0)


def main() -> None:
    """Runs the script."""
    given = flags.FLAGS
    if not given.workdir:
        raise UserError("Pass the work directory of a comparison with --workdir=DIR.")
    directory = pathlib.Path(given.workdir)
    if given.groups and given.group:
        raise UserError("Pass --groups=FILE.csv or --group=NAME, not both.")
    groups = clients.read_groups(pathlib.Path(given.groups)) if given.groups else None
    runs, omitted = clients.read(directory, given.against)
    if given.group:
        groups = clients.recorded_groups(runs, given.against, given.group)
    found = clients.compare(
        runs,
        given.against,
        metrics=given.metrics,
        groups=groups,
        seed=given.seed,
        unseen=given.unseen,
    )
    text = clients.markdown(found._replace(notes=[*found.notes, *omitted]))
    writers.write_text(directory / "users.md", text)
    if not given.quiet:
        print(text, end="")


if __name__ == "__main__":
    app.run(main, define_flags)
