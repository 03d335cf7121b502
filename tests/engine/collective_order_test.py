"""Collectives of a round run in one order on every device, so that no device waits for ever."""

import re
from typing import NamedTuple

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.engine import groups, mapping, programs

_COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all)\(")


class Instruction(NamedTuple):
    """A line of a compiled program: the names of the values it reads, and those of its bodies."""

    reads: frozenset[str]
    bodies: tuple[str, ...]
    is_collective: bool


def computations(text: str) -> dict[str, dict[str, Instruction]]:
    """Returns the instructions of each computation of a program, in the order of the text."""
    found: dict[str, dict[str, Instruction]] = {}
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            found[header[1]] = {}
        instruction = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)
        if instruction:
            name, rest = instruction.groups()
            bodies = tuple(re.findall(r"(?:body|condition|calls|to_apply)=%([\w.\-]+)", rest))
            reads = frozenset(re.findall(r"%([\w.\-]+)", rest)) - set(bodies)
            is_collective = bool(_COLLECTIVE.search(f" {rest}"))
            found[list(found)[-1]][name] = Instruction(reads, bodies, is_collective)
    return found


def unordered_pairs(text: str) -> tuple[int, list[tuple[str, str]]]:
    """Returns the number of loops with collectives, and what could run before or after one."""
    every = computations(text)

    def contains(computation: str) -> bool:
        return any(
            one.is_collective or any(map(contains, one.bodies))
            for one in every[computation].values()
        )

    num_loops, pairs = 0, []
    for instructions in every.values():
        earlier: dict[str, frozenset[str]] = {}  # of each value, all values that it depends on
        loops = [n for n, one in instructions.items() if any(map(contains, one.bodies))]
        for name, one in instructions.items():
            known = [earlier[read] | {read} for read in one.reads if read in earlier]
            earlier[name] = frozenset().union(*known)
        others = [n for n, one in instructions.items() if one.is_collective]
        num_loops += len(loops)
        for number, loop in enumerate(loops):
            for other in others + loops[:number]:
                if loop not in earlier[other] and other not in earlier[loop]:
                    pairs.append((loop, other))
    return num_loops, pairs


def everything() -> core.Algorithm:
    """A method in which every term of a round is communicated between devices."""

    def client_update(server, client, data, context):
        sent = data.size * jnp.ones(2) + context.prepared["size"]
        return core.ClientOutput(
            {"mark": client["mark"] + server["sum"], "key": client["key"]},
            sum={"sum": sent, "count": data.size},
            each=data.size * jnp.ones(3),
            metrics={"loss": sent[0]},
        )

    def exchange(server, client, data, uploads, cohort, member, context):
        return client | {"mark": client["mark"] + uploads.each[member, 0]}

    return core.Algorithm(
        init_server=lambda population, key: {"sum": jnp.zeros(2), "count": jnp.int32(0)},
        init_client=lambda server, profile, key: {"mark": jnp.zeros(2), "key": key},
        prepare=lambda server, data, context: {"size": data.size * jnp.ones(2)},
        client_update=client_update,
        server_update=lambda server, uploads, cohort, context: dict(uploads.total),
        personalize=lambda server, client, data, context: federation.task().init(jax.random.key(0)),
        exchange=exchange,
    )


def compiled(make: programs.Make, num_groups: int = 1) -> str:
    made = federation.programs(make, devices=2, num_groups=num_groups)
    placed = mapping.replicate(federation.examples(), made.devices)
    inputs = mapping.replicate(programs.Inputs(), made.devices)
    state = made.init(placed, jax.random.key(0), inputs)
    return made.rounds.compile(state, placed, np.int32(3), np.int32(3), inputs).as_text()


@pytest.mark.parametrize("num_groups", [1, 2])
def test_nothing_can_overtake_a_loop_with_collectives(num_groups):
    method = programs.Method(everything(), federation.task())
    made = method if num_groups == 1 else groups.Groups((method,) * num_groups)
    num_loops, pairs = unordered_pairs(compiled(lambda *inputs: made, num_groups))
    assert num_loops == 1 + 2 * num_groups  # the rounds, and for each group both ways of its states
    assert pairs == []
