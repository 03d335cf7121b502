"""Communication between the devices of a program, counted from the traced program.

    reduced    summed over all devices, with the sum on every device
    gathered   copied from every device to every device
    exchanged  sent from every device to every other one, different rows to each

A loop of known length counts as often as it runs, one of unknown length (the rounds of a call, the
buckets of a round) once. The count of a program of rounds is therefore that of one round with one
bucket of migrated states in each direction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pfljax.core import tree
from pfljax.engine import mapping


class Communication(NamedTuple):
    """Bytes of the results of a device's collectives.

    Attributes:
      reduced: The bytes of sums.
      gathered: The bytes of rows gathered from all devices.
      exchanged: The bytes of rows exchanged between pairs of devices.
    """

    reduced: int = 0
    gathered: int = 0
    exchanged: int = 0

    def sent(self, devices: int) -> float:
        """Returns the bytes that each of `devices` devices sends, with the usual ring algorithms.

        A sum sends every byte twice except a device's own part, a gather once; a device sends no
        exchanged rows to itself.

        Example:
          >>> Communication(reduced=100, exchanged=8).sent(4)
          156.0
        """
        others = (devices - 1) / devices
        return others * (2 * self.reduced + self.gathered + self.exchanged)


_KINDS = {"psum": "reduced", "all_gather": "gathered", "all_to_all": "exchanged"}


def count(program: mapping.Program, *args: Any) -> Communication:
    """Traces a program without compiling it, and counts its communication.

    Args:
      program: A program of `mapping.over_devices`.
      *args: The arguments of the program, or their shapes.
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
