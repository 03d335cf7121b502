"""Runs with the population on the host: results, resumption and refusals."""

import jax
import numpy as np
import pytest
from runs import assert_same_run, config, interrupt_at

from pfljax.errors import UserError
from pfljax.training.run import checkpoint, loop, writers
from pfljax.training.study import experiment, vectorized

HOST = {"engine.residence": "host"}


@pytest.fixture(scope="module")
def built():
    return experiment.build(config(**HOST))


@pytest.fixture(scope="module")
def straight(built, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    return directory, loop.run(built, directory), None


def test_the_numbers_are_those_of_a_population_on_the_devices(straight, tmp_path):
    directory, result, _ = straight
    expected = loop.run(experiment.build(config()), tmp_path)
    for one, other in zip(
        *(writers.read_rows(at / "metrics.jsonl") for at in (directory, tmp_path)), strict=True
    ):
        assert one.pop("train/slots", 0) >= 0 and other.pop("train/slots", 0) >= 0
        assert one == pytest.approx(other, rel=1e-4, nan_ok=True)
    for name in ("upload_bytes", "download_bytes", "compilations_after_first_round"):
        assert result[name] == expected[name], name
    clients, wanted = (np.load(at / "clients.npz") for at in (directory, tmp_path))
    for name in wanted:
        np.testing.assert_allclose(clients[name], wanted[name], rtol=1e-4)


@pytest.mark.parametrize("last", [3, 4, 6])
def test_an_interruption_leaves_no_trace(straight, built, tmp_path, last):
    """Rounds after the last checkpoint have written rows, and are repeated."""

    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(last))
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


def test_a_checkpoint_needs_its_rows(built, tmp_path):
    loop.run(built._replace(config=config(rounds=3, **HOST)), tmp_path)
    built.store.damaged_file(tmp_path).unlink()
    with pytest.raises(UserError, match="round 3 .*the states of 4 clients, such as client 0"):
        loop.run(built, tmp_path, resume=True)


def test_a_damaged_row_makes_the_checkpoint_before_count(straight, built, tmp_path, capsys):
    loop.run(built._replace(config=config(rounds=3, **HOST)), tmp_path)
    checkpoints = checkpoint.Checkpoints(
        tmp_path / "checkpoints", to_host=built.store.to_host, to_devices=built.store.to_devices
    )
    like = built.store.like_snapshot(built.programs.init(built.examples, jax.random.key(0)))
    newer, older = (
        one.state.clients.table[0]
        for one in checkpoints.restore(like, 5, built.devices, all_of_them=True)
    )
    checkpoints.close()
    row = min(set(newer.tolist()) - set(older.tolist()))  # of round 3 alone
    path = built.store.damaged_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[row * 4 * (64 * 8 + 8 + 8 * 10 + 10) + 5] ^= 4
    path.write_bytes(content)
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "that of round 2 is used" in warning
    assert (tmp_path / "checkpoints" / "3.damaged").exists()


@pytest.mark.parametrize("engine", [HOST, {}], ids=["host", "device"])
def test_some_clients_are_scored(straight, tmp_path, engine):
    some = experiment.build(config(**engine, **{"engine.eval_clients": 2}))
    on_host = experiment.build(config(**HOST, **{"engine.eval_clients": 2}))
    np.testing.assert_array_equal(some.store.eval_ids, on_host.store.eval_ids)
    loop.run(some, tmp_path)
    found, wanted = (np.load(at / "clients.npz") for at in (tmp_path, straight[0]))
    ids = found["client"]
    assert len(set(ids)) == 2
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name][ids], rtol=1e-5)


def test_runs_on_the_host_share_no_program():
    with pytest.raises(UserError, match="'host' cannot be vectorized"):
        vectorized.build([config(seed=seed, **HOST) for seed in (0, 1)])
