"""Which of its arguments a traced function reads."""

from __future__ import annotations

from typing import Any


def arguments(program: Any) -> list[bool]:
    """Returns for each flat argument of a program whether it reads it or returns it.

    Args:
      program: what `jax.make_jaxpr(function)(*args)` returned.

    Example:
      >>> import jax
      >>> arguments(jax.make_jaxpr(lambda a, b, c: (a + 1, c))(1, 2, 3))
      [True, False, True]
    """
    jaxpr = program.jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    read.update(id(variable) for variable in jaxpr.outvars)
    return [id(variable) in read for variable in jaxpr.invars]
