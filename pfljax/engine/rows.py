"""Private states in a memory-mapped file on the host, for populations that outgrow the devices.

A *table* says where each client's state is: `[num_clients]` int32, a row of the file, or -1 for a
client that never took part, whose state need not exist. Rows are written in place, unless a
snapshot holds them: those stay, and the client gets another row. So a snapshot is a copy of the
table, and costs on disk the rows that were written after it; a run that ends at any moment finds
the rows of its snapshots as they were.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

PyTree = Any

_NOBODY = -1


def new_table(num_clients: int) -> np.ndarray:
    """Returns the table of a population of which nobody took part yet."""
    return np.full(num_clients, _NOBODY, np.int32)


class RowFile:
    """A file of rows, one for each client that took part; not for several threads at once.

    Args:
      path: the file; it takes on disk what is written, not what it is long.
      row: shapes and dtypes of one client's state.
      snapshots: how many of the newest are kept.
      anew: begin with an empty file; else its rows are those of an earlier run.
    """

    def __init__(self, path: pathlib.Path, row: PyTree, *, snapshots: int, anew: bool):
        leaves, self._structure = jax.tree.flatten(row)
        self._fields, self._row_bytes = [], 0
        for leaf in leaves:
            dtype = np.dtype(leaf.dtype)
            end = self._row_bytes + int(np.prod(leaf.shape)) * dtype.itemsize
            self._fields.append((slice(self._row_bytes, end), dtype, leaf.shape))
            self._row_bytes = end
        self._path, self._num_snapshots = path, snapshots
        self._bytes = np.zeros((0, self._row_bytes), np.uint8)
        self._held = np.zeros(0, bool)  # by a snapshot
        self._tables: list[np.ndarray] = []
        self._free = np.zeros(0, np.int32)
        if self._row_bytes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("wb" if anew else "ab").close()
            self._map(path.stat().st_size // self._row_bytes)
        # Rows of an earlier run may be of a snapshot of which nothing is known here.
        self._end = len(self._bytes)
        self._held[:] = True

    def _map(self, rows: int) -> None:
        self._held = np.concatenate([self._held, np.zeros(rows - len(self._held), bool)])
        if rows:
            with self._path.open("r+b") as file:
                file.truncate(rows * self._row_bytes)
            self._bytes = np.memmap(self._path, np.uint8, mode="r+", shape=(rows, self._row_bytes))

    def read(self, table: np.ndarray, ids: np.ndarray) -> PyTree:
        """Returns `[n, ...]`, the states of clients `[n]`; zeros where there is none yet."""
        rows = np.where(ids < 0, _NOBODY, table[np.maximum(ids, 0)])
        known = rows >= 0
        block = np.zeros((len(ids), self._row_bytes), np.uint8)
        block[known] = self._bytes[rows[known]]
        leaves = [
            np.ascontiguousarray(block[:, field]).view(dtype).reshape(len(ids), *shape)
            for field, dtype, shape in self._fields
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def write(self, table: np.ndarray, ids: np.ndarray, states: PyTree) -> None:
        """Writes the states `[n, ...]` of clients `[n]`, and where they are into `table`.

        Args:
          table: of the population; changed in place.
          ids: of different clients; negative ones are left out.
          states: what `read` returns.
        """
        if not self._row_bytes:
            return
        block = np.empty((len(ids), self._row_bytes), np.uint8)
        for leaf, (field, dtype, shape) in zip(jax.tree.leaves(states), self._fields, strict=True):
            flat = np.ascontiguousarray(leaf, dtype).reshape(len(ids), int(np.prod(shape)))
            block[:, field] = flat.view(np.uint8)
        block, ids = block[ids >= 0], ids[ids >= 0]
        rows = table[ids]
        moves = (rows < 0) | self._held[np.maximum(rows, 0)] if len(self._held) else rows < 0
        rows[moves] = self._take(int(moves.sum()))
        self._bytes[rows] = block
        table[ids] = rows

    def _take(self, count: int) -> np.ndarray:
        """Returns rows that nobody has."""
        reused, self._free = self._free[:count], self._free[count:]
        fresh = np.arange(self._end, self._end + count - len(reused), dtype=np.int32)
        self._end += len(fresh)
        if self._end > len(self._bytes):
            self._map(max(self._end, 2 * len(self._bytes), 1024))
        return np.concatenate([reused, fresh])

    def snapshot(self, table: np.ndarray) -> np.ndarray:
        """Brings the rows to disk and keeps them; returns a copy of the table.

        The oldest snapshot beyond those kept gives its rows free.
        """
        if isinstance(self._bytes, np.memmap):
            self._bytes.flush()
        table = table.copy()
        self._tables = [*self._tables, table][-self._num_snapshots :]
        if len(self._tables) == self._num_snapshots:
            # All that was held before is known now, so the rest is free.
            self._held[:] = False
        for kept in self._tables:
            self._held[kept[kept >= 0]] = True
        if len(self._tables) == self._num_snapshots:
            self._free = np.flatnonzero(~self._held[: self._end]).astype(np.int32)
        return table

    def has(self, table: np.ndarray) -> bool:
        """Whether the file is long enough for the rows of an earlier table."""
        return int(table.max()) < len(self._bytes) or not self._row_bytes
