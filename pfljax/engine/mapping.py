"""The client axis and the device axis: the only module with `vmap` over clients and `pmap`.

On every device, a scan iterates over chunks of clients, and `vmap` maps over the clients of a
chunk. Chunks of one client are not vmapped: on a CPU, a plain matrix product is faster than a
batched one.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.core import tree
from pfljax.core.types import FederatedState

PyTree = Any
AXIS = "devices"

# The sharding of a federated state: private states are sharded, everything else is replicated.
STATE_AXES = FederatedState(server=None, clients=0, round=None, key=None, joined=None)


def local_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh of this process's devices among `devices` (None means all)."""
    local = [d for d in devices or jax.devices() if d.process_index == jax.process_index()]
    return jax.sharding.Mesh(np.array(local), (AXIS,))


def spread_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.Sharding:
    """Returns the sharding of an array with a leading device axis on the devices of `mesh`."""
    return jax.NamedSharding(mesh, jax.P(AXIS))


def replicate(values: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Copies arrays to every device of this process, as required by `in_axes=None`."""
    return jax.device_put(values, jax.NamedSharding(local_mesh(devices), jax.P()))


# XLA compiles the program of round 0 of an MLP twice as fast for short vectors, and its result is
# the same to the last bit. With `xla_backend_optimization_level=1` it takes a quarter of the time,
# but a state can differ in the last bit from the same state computed by another program.
_SHORT_VECTORS = {"xla_cpu_prefer_vector_width": 128}


class Program:
    """A function compiled once, at its first call or in a thread, for the shapes of that call.

    Attributes:
      compile_seconds: The seconds of tracing, lowering and compiling; 0 before the first call.
      compilations_in_threads: Number of compilations since `start_compiling`, 0 or 1.
      device_bytes: The device memory for arguments, results and temporaries, as planned by XLA.
    """

    def __init__(self, function: Callable, positions: jax.Array, options: dict[str, Any]):
        self._function = function
        self._positions = positions
        self._options = options
        self._compiled = None
        self._compiling: concurrent.futures.Future | None = None
        self.compile_seconds = 0.0
        self.compilations_in_threads = 0
        self.device_bytes: int | None = None

    def trace(self, *args: Any) -> Any:
        """Returns the jaxpr of the program."""
        return jax.make_jaxpr(self._function)(self._positions, *args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Returns the program before XLA compiles it, for inspection."""
        return self._function.lower(self._positions, *args)

    def _compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        return lowered.compile(compiler_options=self._options)

    def start_compiling(
        self, threads: concurrent.futures.Executor, *args: Any
    ) -> tuple[concurrent.futures.Future, PyTree]:
        """Traces for the shapes of `args`, and compiles in a thread; `compile` then waits for it.

        A program for which this was called before is only traced.

        Args:
          threads: The threads in which to compile.
          *args: The arguments, or their shapes.

        Returns:
          The future of the compilation, and the shapes of the results with their shardings.
        """
        begin = time.perf_counter()
        lowered = self.lower(*args)
        traced = time.perf_counter() - begin

        def compile():
            begin = time.perf_counter()
            compiled = self._compile(lowered)
            return compiled, traced + time.perf_counter() - begin

        if self._compiling is None:
            self._compiling = threads.submit(compile)
        return self._compiling, lowered.out_info

    def compile(self, *args: Any) -> jax.stages.Compiled:
        """Compiles for the shapes of `args` at the first call; returns the compiled program."""
        if self._compiled is None:
            if self._compiling is None:
                begin = time.perf_counter()
                self._compiled = self._compile(self.lower(*args))
                self.compile_seconds = time.perf_counter() - begin
            else:
                self._compiled, self.compile_seconds = self._compiling.result()
                self.compilations_in_threads = 1
            plan = self._compiled.memory_analysis()
            if plan is not None:
                self.device_bytes = (
                    plan.argument_size_in_bytes
                    + plan.output_size_in_bytes
                    + plan.temp_size_in_bytes
                    - plan.alias_size_in_bytes
                )
        return self._compiled

    def __call__(self, *args: Any) -> Any:
        program = self.compile(*args)
        if jax.process_count() > 1:
            # Only `pmap` accepts each process's local arrays as parts of global ones.
            program = self._function
        return program(self._positions, *args)


def over_devices(
    program: Callable,
    *,
    in_axes: Any,
    out_axes: Any,
    donate: tuple[int, ...] = (),
    devices: Sequence[jax.Device] | None = None,
    runs_once: bool = False,
) -> Program:
    """Prepares `program` to run on all devices at once, each with its slice of the inputs.

    Args:
      program: The function; it may call the collectives below.
      in_axes: For each argument, 0 (split along a leading device axis) or None (replicated).
      out_axes: The same for the results.
      donate: The arguments whose memory the results may reuse.
      devices: The devices to use; None means all.
      runs_once: Whether compiling takes longer than running, so that it is optimized less on CPU.
    """
    # `pmap` needs at least one argument with a device axis, and stateless methods have none.
    mesh = local_mesh(devices)
    positions = jax.device_put(np.arange(mesh.size, dtype=np.int32), spread_sharding(mesh))
    mapped = jax.pmap(
        lambda position, *args: program(*args),
        axis_name=AXIS,
        in_axes=(0, *in_axes),
        out_axes=out_axes,
        donate_argnums=tuple(argument + 1 for argument in donate),
        devices=devices,
    )
    on_cpu = mesh.devices[0].platform == "cpu"
    return Program(mapped, positions, _SHORT_VECTORS if runs_once and on_cpu else {})


def traced_once(function: Callable) -> Callable:
    """Returns a function of arrays that is traced once for all its uses with the same shapes.

    For the body of a loop whose shapes are needed before the loop: without it, `jax.eval_shape` and
    the loop each run the method's Python code. The lowered program is the same.
    """
    return jax.jit(function, inline=True)


def device_index() -> jax.Array:
    """Returns `[]` int32, the index of this device."""
    return jax.lax.axis_index(AXIS)


def num_devices() -> int:
    """Returns the number of devices that run the program, over all processes (static)."""
    return jax.lax.axis_size(AXIS)


def sum_over_devices(values: PyTree) -> PyTree:
    """Returns the sum of `values` over all devices, the same on each."""
    return jax.lax.psum(values, AXIS)


def max_over_devices(values: PyTree) -> PyTree:
    """Returns the maximum of `values` over all devices, the same on each."""
    return jax.lax.pmax(values, AXIS)


def stack_over_devices(rows: PyTree) -> PyTree:
    """Returns `[devices * n, ...]` from each device's `[n, ...]`, the same on each."""
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), rows)


def exchange_over_devices(rows: PyTree) -> PyTree:
    """Sends row `i` of `[devices, ...]` to device `i`; returns in row `i` what device `i` sent."""

    def one(leaf):
        return jax.lax.all_to_all(leaf, AXIS, split_axis=0, concat_axis=0)

    return jax.tree.map(one, rows)


def after(numbers: jax.Array, values: PyTree) -> jax.Array:
    """Returns the integers `numbers` unchanged, but only after all of `values` have been computed.

    Devices that begin two collectives in different orders can wait for each other for ever: with
    two threads, one waits in the first and one in the second. XLA orders the collectives of a
    computation on CPUs, but not a collective and a loop with collectives in it; those need a
    dependency. Adding zero times a value is no dependency, since XLA removes it from integers.

    Args:
      numbers: Integers of any shape.
      values: Arrays, or typed keys.
    """
    firsts = [
        (jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        .reshape(-1)[0]
        .astype(bool)
        for leaf in jax.tree.leaves(values)
        if leaf.size
    ]
    if not firsts:
        return numbers
    true = jnp.sum(jnp.stack(firsts), dtype=numbers.dtype)
    return jnp.minimum(numbers, numbers + true)


def map_and_sum(
    function: Callable[[PyTree], tuple[PyTree, PyTree]], clients: PyTree, *, clients_per_chunk: int
) -> tuple[PyTree, PyTree]:
    """Applies a function to many clients, and sums a part of its results.

    Args:
      function: `client -> (row, term)`.
      clients: Arrays with a leading client axis, whose length is a multiple of `clients_per_chunk`.
      clients_per_chunk: Number of clients that are vmapped at once; memory is proportional to it.

    Returns:
      The rows, stacked along the client axis, and the sum of the terms.
    """
    _, rows, total = map_states(
        lambda client, _: ((), *function(client)),
        _NoStates(),
        clients,
        clients_per_chunk=clients_per_chunk,
    )
    return rows, total


class States(Protocol):
    """States of clients that are read and written in place."""

    def read(self, numbers: jax.Array) -> PyTree:
        """Returns `[n, ...]`, the states of the clients `numbers` `[n]`."""

    def write(self, numbers: jax.Array, states: PyTree) -> States:
        """Returns all states, those of the clients `numbers` `[n]` being `states` `[n, ...]`."""


class _NoStates(NamedTuple):
    def read(self, numbers):
        return ()

    def write(self, numbers, states):
        return self


def map_states(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, PyTree]],
    states: States,
    clients: PyTree,
    *,
    clients_per_chunk: int,
) -> tuple[States, PyTree, PyTree]:
    """`map_and_sum` for clients with states, which are updated in place.

    Args:
      function: `(client, state) -> (state, row, term)`.
      states: The states of the clients.
      clients: Arrays with a leading client axis, whose length is a multiple of `clients_per_chunk`.
      clients_per_chunk: Number of clients that are vmapped at once; memory is proportional to it.

    Returns:
      The states, the rows, stacked along the client axis, and the sum of the terms.
    """
    starts = np.arange(0, jax.tree.leaves(clients)[0].shape[0], clients_per_chunk, np.int32)

    @traced_once
    def of_chunk(states, start):
        numbers = start + jnp.arange(clients_per_chunk, dtype=jnp.int32)
        chunk = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, clients_per_chunk), clients
        )
        found, rows, terms = _map_chunk(function, chunk, states.read(numbers))
        return states.write(numbers, found), rows, terms

    def one_chunk(carry, start):
        states, total = carry
        states, rows, terms = of_chunk(states, start)
        return (states, tree.add(total, terms)), rows

    zero = tree.zeros_like(jax.eval_shape(of_chunk, states, starts[0])[2])
    (states, total), rows = jax.lax.scan(one_chunk, (states, zero), starts)
    return states, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows), total


def _map_chunk(function: Callable, clients: PyTree, states: PyTree) -> tuple:
    """Applies a function to the clients of a chunk; returns its results, with the terms summed."""
    if jax.tree.leaves(clients)[0].shape[0] == 1:
        clients, states = jax.tree.map(lambda leaf: leaf[0], (clients, states))
        states, rows, terms = function(clients, states)
        return *jax.tree.map(lambda leaf: leaf[None], (states, rows)), terms
    states, rows, terms = jax.vmap(function)(clients, states)
    return states, rows, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), terms)
