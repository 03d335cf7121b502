"""The finished runs of which the scores of clients are compared."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from pfljax.errors import UserError
from pfljax.report import finished
from pfljax.training.study import config_values


def read(directory: pathlib.Path, against: str) -> tuple[dict[str, list[finished.Run]], list[str]]:
    """Reads the finished runs of a comparison, with the seeds of the reference method.

    Args:
      directory: The work directory of `compare`, or with scenarios that of one of them. If the
        reference method is given as 'SUBDIRECTORY/METHOD', the directory of the work directories of
        several comparisons, which may have different models.
      against: The name of the reference method.

    Returns:
      The runs, `{method: [one run per seed]}`, the reference method first, and a sentence on each
      method or seed that is left out.

    Raises:
      UserError: The reference method has no finished run in the directory.
    """
    seeds: dict[str, set[int]] = {}
    several = "/" in against
    for path in sorted(directory.glob(f"{'*/' if several else ''}*/seed_*/result.json")):
        number = path.parent.name.removeprefix("seed_")
        if number.isdecimal():
            name = path.parent.parent.relative_to(directory).as_posix()
            seeds.setdefault(name, set()).add(int(number))
    if not seeds:
        raise UserError(
            f"The work directory {directory} has no finished runs; pass that of a comparison, and "
            "with scenarios the directory of one of them."
        )
    config_values.require_known("reference method (against)", against, seeds)
    others = sorted(set().union(*seeds.values()) - seeds[against])
    wanted = sorted(seeds[against])
    if several:
        runs, notes = _read_several(directory, against, seeds)
    else:
        runs, notes = finished.collect(directory, [against], wanted)
    if others:
        some = ", ".join(map(str, others))
        notes = [*notes, f"Not used: seed {some}, with which {against} has no finished run."]
    return runs, notes


def _read_several(
    directory: pathlib.Path, against: str, seeds: Mapping[str, set[int]]
) -> tuple[dict[str, list[finished.Run]], list[str]]:
    """Reads the runs of several comparisons, as `read` does; `seeds` are those of each method."""

    def of(name):
        wanted = sorted(seeds[against])
        return [finished.read_run(directory / name / f"seed_{seed}") for seed in wanted]

    runs, notes = {against: of(against)}, []
    for name in sorted(seeds.keys() - {against}):
        if not seeds[name] >= seeds[against]:
            notes.append(f"{name} is not shown: some of the seeds are missing.")
            continue
        found = of(name)
        # Each model may need inputs and rounds of its own.
        own = ("model", "rounds", "user_features")
        differs = finished.first_difference(runs[against], found, ignored=own)
        if differs:
            notes.append(f"{name} is not shown: its runs have {differs}.")
        else:
            runs[name] = found
    return runs, notes
