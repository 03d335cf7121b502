"""Private states in a memory-mapped file on the host, for populations larger than device memory.

A *table* contains the row of each client's state in the file: `[num_clients]` int32, with -1 for a
client that never took part, whose state need not exist. Rows are written in place, unless a
snapshot uses them: these are kept, and the client gets another row. A snapshot is therefore a copy
of the table, and costs disk space only for the rows written after it; if a run ends at any moment,
the rows of its snapshots are unchanged.

Every row has a checksum, computed when it is written: the 31 low bits of its CRC-32, at 1 to 7 GB/s
on one core, in the thread that copies rows to the file. A snapshot copies the checksums and reads
no row. `RowFile.damaged` reads the rows of one snapshot, once for each resumption: 100 GB take the
time of reading them from disk, or 15 to 100 s if they are in memory.
"""

from __future__ import annotations

import errno
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pfljax.errors import UserError

PyTree = Any

_NOBODY = -1
# Maximum growth of the file ahead of the rows in use; below it, the file doubles.
_MOST_AHEAD = 64 * 2**20
# Number of bytes read at a time to verify checksums.
_BLOCK = 16 * 2**20


def new_table(num_clients: int) -> np.ndarray:
    """Returns the table of a population in which no client has taken part."""
    return np.full(num_clients, _NOBODY, np.int32)


class Snapshot(NamedTuple):
    """The part of a checkpoint that describes private states in a file.

    Attributes:
      table: `[num_clients]` int32, the row of each client; -1 for none.
      checksums: `[num_clients]` int32, the checksum of that row; -1 for none.
    """

    table: np.ndarray
    checksums: np.ndarray


def _checksum(row: np.ndarray) -> int:
    # 31 bits, so that -1 means none and the values fit into int32.
    return zlib.crc32(row) & 0x7FFFFFFF


def _reserve(file: int, begin: int, end: int) -> None:
    """Reserves space on disk for the bytes from `begin` to `end` of an open file."""
    if begin >= end or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, begin, end - begin)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # unsupported by the file system
            raise


class RowFile:
    """A file of rows, one for each client that has taken part; not thread-safe.

    Args:
      path: The path of the file.
      row: The shapes and dtypes of one client's state.
      snapshots: Number of snapshots to keep, the latest ones.
      anew: Whether to start with an empty file; else its rows are those of an earlier run, which
        are all kept until `adopt` is called.

    Raises:
      UserError: The file cannot be opened.
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
        self._held = np.zeros(0, bool)  # rows used by a snapshot
        self._checksums = np.zeros(0, np.int32)
        self._snapshots: list[Snapshot] = []
        self._free = np.zeros(0, np.int32)
        self._end = 0  # the end of the rows that were ever in use
        # Whether the list contains all snapshots.
        self._all_known = anew
        if not self._row_bytes:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("wb" if anew else "ab").close()
            rows = path.stat().st_size // self._row_bytes
            if rows:
                self._map(rows)
        except OSError as error:
            raise UserError(f"{path} cannot be used ({error.strerror}).") from error
        self._end = rows
        self._held[:] = True

    def _map(self, rows: int) -> None:
        """Maps the first rows of the file, whatever its length."""
        for name, nothing in (("_held", False), ("_checksums", _NOBODY)):
            old = getattr(self, name)[:rows]
            setattr(self, name, np.pad(old, (0, rows - len(old)), constant_values=nothing))
        self._bytes = np.zeros((0, self._row_bytes), np.uint8)
        if rows:
            self._bytes = np.memmap(self._path, np.uint8, mode="r+", shape=(rows, self._row_bytes))

    def _resize(self, rows: int, reserved: int) -> None:
        """Resizes the file, with all its space reserved on disk, and maps it.

        A mapped page without space on disk would end the process with a bus error at its first use.
        If the system cannot reserve space (macOS, Windows), this still happens on a full disk.

        Args:
          rows: The new number of rows.
          reserved: The number of rows whose space is already reserved.

        Raises:
          UserError: The disk is full, or a quota is reached.
        """
        size = rows * self._row_bytes
        self._bytes = np.zeros((0, self._row_bytes), np.uint8)  # Windows cannot resize mapped files
        try:
            with self._path.open("r+b") as file:
                _reserve(file.fileno(), reserved * self._row_bytes, size)
                file.truncate(size)
            self._map(rows)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot grow to {size / 1e6:.0f} MB ({error.strerror}); free some "
                "space and resume from the latest checkpoint, which is kept."
            ) from error

    def read(self, table: np.ndarray, ids: np.ndarray) -> PyTree:
        """Returns `[n, ...]`, the states of clients `[n]`; zeros for clients without a state."""
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
        """Writes the states `[n, ...]` of clients `[n]`, and their rows into `table`.

        Args:
          table: The table of the population; changed in place.
          ids: The ids of different clients; negative ones are skipped.
          states: The states, in the format of `read`.

        Raises:
          UserError: The disk is full.
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
        self._checksums[rows] = [_checksum(row) for row in block]
        table[ids] = rows

    def _take(self, count: int) -> np.ndarray:
        """Returns rows that neither a client nor a snapshot uses."""
        reused, self._free = self._free[:count], self._free[count:]
        fresh = np.arange(self._end, self._end + count - len(reused), dtype=np.int32)
        end = self._end + len(fresh)
        if end > len(self._bytes):
            ahead = min(len(self._bytes), max(1, _MOST_AHEAD // self._row_bytes))
            self._resize(max(end, len(self._bytes) + ahead), reserved=len(self._bytes))
        self._end = end
        return np.concatenate([reused, fresh])

    def snapshot(self, table: np.ndarray) -> Snapshot:
        """Flushes the rows to disk and protects them from being overwritten.

        The oldest snapshot beyond those kept releases its rows.

        Raises:
          UserError: The disk cannot be written.
        """
        if isinstance(self._bytes, np.memmap):
            try:
                self._bytes.flush()
            except OSError as error:
                raise UserError(
                    f"{self._path} cannot be written ({error.strerror}); resume from the latest "
                    "checkpoint, which is kept."
                ) from error
        table = table.copy()
        checksums = new_table(len(table))
        if self._row_bytes:
            known = table >= 0
            checksums[known] = self._checksums[table[known]]
        kept = Snapshot(table, checksums)
        self._snapshots = [*self._snapshots, kept][-self._num_snapshots :]
        # After so many snapshots, all snapshots of an earlier run are outdated.
        self._all_known |= len(self._snapshots) == self._num_snapshots
        self._hold_snapshots()
        return kept

    def _hold_snapshots(self) -> None:
        if self._all_known:
            self._held[:] = False
        for kept in self._snapshots:
            self._held[kept.table[kept.table >= 0]] = True
        if self._all_known:
            self._free = np.flatnonzero(~self._held[: self._end]).astype(np.int32)

    def adopt(self, snapshots: Sequence[Snapshot]) -> None:
        """Continues the file of an earlier run from its snapshots; all other rows are released.

        Args:
          snapshots: All snapshots that may still be resumed from, the latest last.

        Raises:
          UserError: The disk is full.
        """
        if not self._row_bytes:
            return
        self._snapshots = list(snapshots)[-self._num_snapshots :]
        self._all_known = True
        self._end = max(
            (int(kept.table.max(initial=-1)) + 1 for kept in self._snapshots), default=0
        )
        self._resize(self._end, reserved=0)
        for kept in self._snapshots:
            known = kept.table >= 0
            self._checksums[kept.table[known]] = kept.checksums[known]
        self._hold_snapshots()

    def damaged(self, snapshot: Snapshot) -> np.ndarray:
        """Returns the clients whose rows in the file differ from a snapshot."""
        ids = np.flatnonzero(snapshot.table >= 0)
        if not self._row_bytes or not len(ids):
            return ids[:0]
        # In the order of the file, which is fastest for disks.
        ids = ids[np.argsort(snapshot.table[ids], kind="stable")]
        rows, wanted = snapshot.table[ids], snapshot.checksums[ids]
        good = np.zeros(len(ids), bool)
        at_a_time = min(max(1, _BLOCK // self._row_bytes), 2**16)
        there = int(np.searchsorted(rows, len(self._bytes)))  # the file may be truncated
        for begin in range(0, there, at_a_time):
            some = slice(begin, min(begin + at_a_time, there))
            good[some] = [_checksum(row) for row in self._bytes[rows[some]]] == wanted[some]
        return np.sort(ids[~good])
