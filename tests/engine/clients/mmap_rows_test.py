"""The file of private states: rows there and back, snapshots that nothing changes, reuse."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.engine.clients import mmap_rows
from pfljax.engine.clients.mmap_rows import RowFile, new_table
from pfljax.errors import UserError

ROW = {
    "flag": jax.ShapeDtypeStruct((), jnp.bool_),
    "half": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    "nothing": jax.ShapeDtypeStruct((0, 2), jnp.float32),
    "w": jax.ShapeDtypeStruct((2, 2), jnp.float32),
}


def states(ids, version=0):
    """States that tell whose they are, and of which version."""
    number = np.asarray(ids, np.float32) + 100 * version
    return {
        "flag": number % 2 == 0,
        "half": np.asarray(jnp.asarray(number[:, None] / 4 + np.zeros(3), jnp.bfloat16)),
        "nothing": np.zeros((len(number), 0, 2), np.float32),
        "w": number[:, None, None] + np.eye(2, dtype=np.float32),
    }


def assert_read(file, table, ids, version=0):
    found = file.read(table, np.array(ids))
    jax.tree.map(np.testing.assert_array_equal, found, states(ids, version))
    assert [leaf.dtype for leaf in found.values()] == [leaf.dtype for leaf in ROW.values()]


@pytest.fixture
def file(tmp_path):
    return RowFile(tmp_path / "deep" / "rows", ROW, snapshots=2, overwrite=True)


def test_there_and_back(file):
    table = new_table(10)
    ids = np.array([7, -1, 2])
    file.write(table, ids, states(ids))
    assert_read(file, table, [2, 7])
    assert (table >= 0).sum() == 2
    found = file.read(table, np.array([-1, 5]))
    assert all(not leaf.any() for leaf in jax.tree.leaves(found))


def test_rows_grow_with_those_who_take_part(file):
    table = new_table(5000)
    for begin in range(0, 3000, 500):
        ids = np.arange(begin, begin + 500)
        file.write(table, ids, states(ids))
    assert_read(file, table, list(range(3000)))
    assert table.max() == 2999


def test_a_snapshot_stays_what_it_was(file, tmp_path):
    table, ids = new_table(4), np.arange(4)
    file.write(table, ids, states(ids))
    kept = file.snapshot(table).table
    for version in (1, 2):
        file.write(table, ids[:2], states(ids[:2], version))
    assert_read(file, kept, ids)
    assert_read(file, table, [0, 1], version=2)
    assert_read(file, table, [2, 3])
    assert table.max() == 5, "a row that no snapshot holds is written in place"

    again = RowFile(tmp_path / "deep" / "rows", ROW, snapshots=2, overwrite=False)
    resumed = kept.copy()
    assert_read(again, resumed, ids)
    again.write(resumed, ids, states(ids, 3))
    assert_read(again, kept, ids)
    assert_read(again, resumed, ids, version=3)


def test_rows_of_forgotten_snapshots_are_used_again(file):
    table, ids = new_table(3), np.arange(3)
    kept = []
    for version in range(12):
        file.write(table, ids, states(ids, version))
        kept.append(file.snapshot(table).table)
        for back, snapshot in enumerate(kept[:-3:-1]):
            assert_read(file, snapshot, ids, version - back)
    assert max(int(snapshot.max()) for snapshot in kept) < 4 * len(ids)


def test_snapshots_of_an_earlier_run_are_kept_until_they_are_known_to_be_old(tmp_path):
    path, ids, table = tmp_path / "rows", np.arange(3), new_table(3)
    file = RowFile(path, ROW, snapshots=2, overwrite=True)
    file.write(table, ids, states(ids))
    older = file.snapshot(table).table
    file.write(table, ids, states(ids, 1))
    table = file.snapshot(table).table
    again = RowFile(path, ROW, snapshots=2, overwrite=False)
    for version in (2, 3):
        again.write(table, ids, states(ids, version))
        assert_read(again, older, ids)
        again.snapshot(table)


def test_a_file_that_lost_rows_is_found_out(tmp_path):
    path, ids, table = tmp_path / "rows", np.arange(3), new_table(3)
    file = RowFile(path, ROW, snapshots=2, overwrite=True)
    file.write(table, ids, states(ids))
    kept = file.snapshot(table)
    with path.open("r+b") as cut:
        cut.truncate(path.stat().st_size - 1)
    assert RowFile(path, ROW, snapshots=2, overwrite=False).damaged(kept).tolist() == [2]
    path.unlink()
    assert RowFile(path, ROW, snapshots=2, overwrite=False).damaged(kept).tolist() == [0, 1, 2]


def test_states_without_arrays_take_no_file(tmp_path):
    file = RowFile(tmp_path / "rows", (), snapshots=2, overwrite=True)
    table = new_table(3)
    file.write(table, np.arange(3), ())
    assert file.read(table, np.arange(3)) == () and not (tmp_path / "rows").exists()
    kept = file.snapshot(table)
    np.testing.assert_array_equal(kept.table, -1)
    file.adopt([kept])
    assert not file.damaged(kept).size


def test_a_resumed_run_appends_after_the_rows_in_use(tmp_path):
    """Twenty kills, each a round after a checkpoint: the file does not grow with them."""
    path, ids, table = tmp_path / "rows", np.arange(50), new_table(50)
    file = RowFile(path, ROW, snapshots=3, overwrite=True)
    file.write(table, ids, states(ids))
    kept = [file.snapshot(table)]
    lengths = []
    for version in range(1, 21):
        file = RowFile(path, ROW, snapshots=3, overwrite=False)
        assert not file.damaged(kept[-1]).size
        file.adopt(kept)
        table = kept[-1].table.copy()
        assert_read(file, table, ids, version - 1)
        file.write(table, ids, states(ids, version))
        kept = [kept[-1], file.snapshot(table)]
        file.write(table, ids, states(ids, 50))  # lost with the process
        assert_read(file, kept[0].table, ids, version - 1)
        lengths.append(path.stat().st_size)
    assert max(lengths) == lengths[2] <= 6 * 50 * 23


@pytest.mark.parametrize("bit", [0, 77, 184 * 3 + 5, 9 * 184 - 1])
def test_a_flipped_bit_of_a_row_is_found(tmp_path, bit):
    path, ids, table = tmp_path / "rows", np.arange(9)[::-1], new_table(12)
    file = RowFile(path, ROW, snapshots=2, overwrite=True)
    file.write(table, ids, states(ids))
    kept = file.snapshot(table)
    assert not file.damaged(kept).size
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    again = RowFile(path, ROW, snapshots=2, overwrite=False)
    assert again.damaged(kept).tolist() == [ids[bit // 8 // 23]]


def test_space_is_reserved_before_rows_are_written(file, tmp_path):
    """A hole in a mapped file would end the process where the disk is full."""
    table, ids = new_table(3000), np.arange(3000)
    file.write(table, ids, states(ids))
    found = (tmp_path / "deep" / "rows").stat()
    assert found.st_blocks * 512 >= found.st_size >= 3000 * 23


def test_a_full_disk_gives_a_one_line_error(file, tmp_path, monkeypatch):
    table, ids = new_table(8), np.arange(4)
    file.write(table, ids, states(ids))
    kept = file.snapshot(table)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="deep/rows cannot grow to .*No space left on device"):
        file.write(table, ids, states(ids, 1))
    again = RowFile(tmp_path / "deep" / "rows", ROW, snapshots=2, overwrite=False)
    assert not again.damaged(kept).size


def test_it_grows_by_a_bounded_step(tmp_path, monkeypatch):
    monkeypatch.setattr(mmap_rows, "_MOST_AHEAD", 100 * 23)
    path, table = tmp_path / "rows", new_table(2000)
    file = RowFile(path, ROW, snapshots=2, overwrite=True)
    for begin in range(0, 2000, 50):
        ids = np.arange(begin, begin + 50)
        file.write(table, ids, states(ids))
        assert path.stat().st_size <= (begin + 50 + 100) * 23
