"""Files of a run: whole or refused, and complete again after a resumption."""

import json

import pytest
from tensorboardX.proto import event_pb2

from pfljax.errors import UserError
from pfljax.training.run import writers

ROWS = [{"round": round, "train/loss": 1 / (round + 1)} for round in (0, 3, 6)]


def steps(directory):
    """The steps in a directory's event files, and how often each is there."""
    found = []
    for path in directory.glob("events.out.tfevents.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            found += [event.step] * len(event.summary.value)
            at += 16 + length
    return sorted(found)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_rows_there_and_back(tmp_path):
    writer = writers.MetricsWriter(tmp_path, ROWS[:1])
    for row in ROWS[1:]:
        writer.write(row)
    writer.close()
    assert writers.read_rows(tmp_path / "metrics.jsonl") == ROWS
    assert steps(tmp_path) == [0, 3, 6]
    assert writers.read_rows(tmp_path / "absent.jsonl") == []


def test_a_killed_process_leaves_no_gap_in_tensorboard(tmp_path):
    killed = writers.MetricsWriter(tmp_path, [])
    killed.write(ROWS[0])
    assert steps(tmp_path) == [0], "an event that only memory holds is lost"
    again = writers.MetricsWriter(tmp_path, ROWS[:2])
    again.write(ROWS[2])
    assert steps(tmp_path) == [0, 3, 6]
    again.close()
    killed.close()


def test_a_last_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(ROWS)[:-20])
    assert writers.read_rows(path) == ROWS[:2]


@pytest.mark.parametrize(
    "line", [b"x", b"", b"5", b"[]", b'{"train/loss": 1}', b'{"round": "3"}', b"\xff\xfe", b'{"ro']
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(ROWS[:1]) + line + b"\n" + lines(ROWS[2:]))
    with pytest.raises(UserError, match=r"Line 2 of .*metrics.jsonl is damaged; .*--resume"):
        writers.read_rows(path)


def test_rows_of_two_runs_in_turn_are_no_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines([ROWS[0], ROWS[0], ROWS[1], ROWS[1]]))
    with pytest.raises(UserError, match="Line 2 "):
        writers.read_rows(path)


def test_a_checksum_covers_every_byte(tmp_path):
    beside = tmp_path / "metrics.jsonl"
    beside.write_bytes(lines(ROWS))
    path = tmp_path / "result.json"
    writers.write_json(path, writers.with_checksums({"score": 0.25, "round": None}, [beside]))
    content = path.read_bytes()
    assert writers.is_intact(json.loads(content), tmp_path)
    noticed = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        try:
            found = json.loads(damaged)
        except ValueError:
            continue
        if found == json.loads(content):
            continue  # a blank became another one
        if "checksums" not in found:
            continue  # As if it were a result of an earlier version, which has none.
        assert not writers.is_intact(found, tmp_path), damaged
        noticed += 1
    assert noticed > 50
    beside.write_bytes(lines(ROWS[:2]))
    assert not writers.is_intact(json.loads(content), tmp_path)
    beside.unlink()
    assert not writers.is_intact(json.loads(content), tmp_path)
    assert writers.is_intact({"score": 0.25}, tmp_path), "an old result has no checksums"
