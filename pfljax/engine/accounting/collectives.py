"""What the devices of a program send each other, counted from the traced program.

    reduced   added up over all devices, every device getting the sum
    gathered  copied from every device to every device
    posted    sent by every device to every other, each getting rows of its own

A loop of known length counts as often as it runs, one of unknown length (the rounds of a call, the
parcels of a round) once, so that what is counted of a program of rounds is one round with one
parcel of guests each way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pfljax.core import tree
from pfljax.engine import mapping


class Communication(NamedTuple):
    """Bytes of the results of a device's collectives.

    Attributes:
      reduced: of sums.
      gathered: of everybody's rows.
      posted: of rows that go straight from each device to each.
    """

    reduced: int = 0
    gathered: int = 0
    posted: int = 0

    def sent(self, devices: int) -> float:
        """Returns the bytes that one of so many devices sends, with the usual ring algorithms.

        A sum takes every byte around twice but for its own part, copies once; a device posts
        nothing to itself.

        Example:
          >>> Communication(reduced=100, posted=8).sent(4)
          156.0
        """
        others = (devices - 1) / devices
        return others * (2 * self.reduced + self.gathered + self.posted)


_KINDS = {"psum": "reduced", "all_gather": "gathered", "all_to_all": "posted"}


def count(program: mapping.Program, *args: Any) -> Communication:
    """Traces a program, without compiling it, and counts.

    Args:
      program: of `mapping.over_devices`.
      *args: as it is called with, or their shapes.
    """
    found = dict.fromkeys(Communication._fields, 0)
    _visit(program.trace(*args).jaxpr, 1, found)
    return Communication(**found)


def _visit(jaxpr: Any, times: int, found: dict[str, int]) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name.removesuffix("_invariant")
        if name in _KINDS:
            results = [variable.aval for variable in equation.outvars]
            found[_KINDS[name]] += times * tree.num_bytes(results)
        inside = times * equation.params["length"] if name == "scan" else times
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    _visit(part, inside, found)
