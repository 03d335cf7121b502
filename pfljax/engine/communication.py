"""What the devices of a program send each other, counted from the traced program.

    reduced   added up over all devices, every device getting the sum
    gathered  copied from every device to every device
    passed    handed from device to device around the ring, once for each hop

A loop of known length counts as often as it runs, one of unknown length (the rounds of a call)
once, so that what is counted of a program of rounds is one round.
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
      passed: of rows on their way around the ring.
    """

    reduced: int = 0
    gathered: int = 0
    passed: int = 0

    def sent(self, devices: int) -> float:
        """Returns the bytes that one of so many devices sends, with the usual ring algorithms.

        A sum takes every byte around twice but for its own part, copies once.

        Example:
          >>> Communication(reduced=100, passed=8).sent(4)
          158.0
        """
        others = (devices - 1) / devices
        return 2 * others * self.reduced + others * self.gathered + self.passed


_KINDS = {"psum": "reduced", "all_gather": "gathered", "ppermute": "passed"}


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
