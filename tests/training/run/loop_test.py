"""A run: its files, their content, and its resumption after an interruption."""

import json
import math
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from runs import ROUNDS, assert_same_run, config, interrupt_at

from pfljax.core import tree
from pfljax.errors import DivergedError, UserError
from pfljax.training.run import checkpoint, loop, stopping, workdir, writers
from pfljax.training.study import experiment


@pytest.fixture(scope="module")
def built():
    """The programs, which all runs here share."""
    return experiment.build(config())


@pytest.fixture(scope="module")
def straight(built, tmp_path_factory):
    """A run from beginning to end: its directory, its result, and its progress reports."""
    directory, reports = tmp_path_factory.mktemp("straight"), []
    result = loop.run(built, directory, progress=lambda *news: reports.append(news))
    return directory, result, reports


def test_the_files(straight):
    directory, result, _ = straight
    names = {file.name for file in directory.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    files = {"config.json", "engine.json", "metrics.jsonl", "clients.npz", "result.json"}
    assert names - events == {*files, ".lock", "checkpoints"} and len(events) == 1
    assert (directory / events.pop()).stat().st_size > 500
    assert json.loads((directory / "result.json").read_text()) == result
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["4", "6"]


def test_the_result_has_its_provenance(straight):
    found = straight[1]["provenance"]
    assert found["devices"] == {"kind": "cpu", "count": 2} and "jax" in found["versions"]
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40


def test_checkpoints_have_arrays_by_their_paths(straight):
    state = straight[0] / "checkpoints" / "6" / "state"
    found = checkpoint.by_path(ocp.StandardCheckpointer().restore(state))
    assert found["server/params/body/Dense_0/kernel"].shape == (64, 8)
    assert found["clients/body/Dense_0/kernel"].shape == (5, 64, 8)


def test_a_run_with_every_training_option_is_resumed_exactly(tmp_path):
    """Also with figures that assume epochs, which are left out."""
    settings = {
        "local_steps": 3,
        "client_optimizer.clip_norm": 1.0,
        "server_optimizer.clip_norm": 0.5,
        "server_optimizer.momentum": 0.9,
        "client_schedule.name": "warmup_cosine_decay_schedule",
        "client_schedule.warmup_steps": 2,
        "keep_best": True,
        "engine.devices": 1,
    }
    built = experiment.build(config(**settings))
    straight = tmp_path / "straight", loop.run(built, tmp_path / "straight"), None
    assert straight[1]["examples_per_second"] is None and straight[1]["padding_fraction"] is None
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path / "parts", progress=interrupt_at(4))
    result = loop.run(built, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", result, straight)
    other = config(**{**settings, "client_schedule.warmup_steps": 3})
    with pytest.raises(UserError, match="client_schedule.warmup_steps is 3 here and 2 there"):
        loop.run(experiment.build(other), tmp_path / "parts", resume=True)
    longer = built._replace(config=config(**settings, rounds=8))
    with pytest.raises(UserError, match="Add --config.planned_rounds=6 to keep it"):
        loop.run(longer, tmp_path / "parts", resume=True)


def test_the_result_has_every_key_of_the_design(straight):
    _, result, _ = straight
    identity = "algorithm dataset partition model seed rounds num_clients cohort_size".split()
    assert [result[name] for name in identity] == [
        *("ditto", "digits", "dirichlet", "mlp", 0, ROUNDS, 5, 3)
    ]
    assert result["hyperparameters"]["lam"] == 0.1

    shares = "last at_best_validation max_over_rounds unweighted_last worst_decile unseen_last"
    for model in ("personal", "global"):
        accuracy = result[f"{model}_accuracy"]
        assert set(accuracy) == {*shares.split(), "std"}
        assert all(0 <= accuracy[name] <= 1 for name in shares.split())
        assert accuracy["worst_decile"] <= accuracy["unweighted_last"]
        assert accuracy["max_over_rounds"] >= accuracy["last"] > 0.3
        assert 0 <= accuracy["std"] <= 0.5

    positive = "seconds_per_round seconds_per_evaluation examples_per_second peak_host_bytes"
    for name in [*positive.split(), "peak_device_bytes"]:
        assert result[name] > 0 and math.isfinite(result[name]), name
    assert 0 <= result["seconds_compile"] < 600
    assert 0 <= result["padding_fraction"] < 0.9
    model_bytes = 4 * (64 * 8 + 8 + 8 * 10 + 10)
    assert (result["upload_bytes"], result["download_bytes"]) == (model_bytes + 4, model_bytes)
    assert result["compilations"] <= 1 and result["compilations_after_first_round"] == 0


def test_the_rows(straight):
    directory, result, _ = straight
    rows = writers.read_rows(directory / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0, 3, 6]
    assert {frozenset(row) for row in rows[1:]} == {frozenset(rows[1])}
    assert rows[-1]["personal/test_accuracy_weighted"] == result["personal_accuracy"]["last"]
    assert (
        rows[-1]["global/unseen_test_accuracy_weighted"]
        == (result["global_accuracy"]["unseen_last"])
    )
    assert rows[1]["train/cohort"] == 3 and rows[1]["train/loss"] > 0
    assert rows[2]["personal/test_loss"] < rows[0]["personal/test_loss"]


def test_the_clients(straight, built):
    directory, result, _ = straight
    clients = dict(np.load(directory / "clients.npz"))
    assert clients["unseen"].tolist() == [False] * 4 + [True]
    np.testing.assert_array_equal(clients["class_counts"].sum(axis=1), clients["train_size"])
    np.testing.assert_array_equal(clients["test_size"], built.dataset.test.sizes)
    seen = ~clients["unseen"]
    accuracy, sizes = clients["personal_test_accuracy"][seen], clients["test_size"][seen]
    assert np.average(accuracy, weights=sizes) == pytest.approx(result["personal_accuracy"]["last"])
    assert accuracy.std() == pytest.approx(result["personal_accuracy"]["std"])


def test_the_progress(straight):
    _, result, reports = straight
    assert [done for done, _ in reports] == [0, 2, 3, 4, 6]
    assert reports[-1][1] == {
        model: result[f"{model}_accuracy"]["last"] for model in ("personal", "global")
    }


def test_more_rounds_continue_a_shorter_run(straight, built, tmp_path):
    first = loop.run(built._replace(config=config(rounds=3)), tmp_path)
    assert first["rounds"] == 3
    result = loop.run(built, tmp_path, resume=True)
    assert_same_run(tmp_path, result, straight)


@pytest.mark.parametrize("last", [2, 3, 4])
def test_an_interruption_leaves_no_trace(straight, built, tmp_path, last):
    """Also one between a checkpoint and the next: round 3 is repeated from round 2."""

    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(last))
    assert not (tmp_path / "result.json").exists()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "pers')  # a row cut short, as a preemption leaves it
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


def test_resuming_where_nothing_is_begins_at_the_beginning(straight, built, tmp_path):
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


def test_resuming_a_finished_run_changes_nothing(straight, built, tmp_path):
    first = loop.run(built._replace(config=config(rounds=3)), tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text()
    again = loop.run(built._replace(config=config(rounds=3)), tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    assert again["personal_accuracy"] == first["personal_accuracy"]
    with pytest.raises(UserError, match="contains a run of 3 rounds, but config.rounds is 2"):
        loop.run(built._replace(config=config(rounds=2)), tmp_path, resume=True)


def test_a_run_is_not_written_over(straight, built):
    directory, result, _ = straight
    with pytest.raises(UserError, match="--resume"):
        loop.run(built, directory)
    assert writers.read_json(directory / "result.json") == result


def test_an_unusable_checkpoint_is_named(built, tmp_path):
    loop.run(built._replace(config=config(rounds=3)), tmp_path)
    narrow = config()
    narrow.model.widths = (4,)
    other = experiment.build(narrow)._replace(config=config())  # without the check of the config
    with pytest.raises(UserError, match="checkpoints/3 is of another model"):
        loop.run(other, tmp_path, resume=True)


def test_divergence_keeps_the_checkpoint_before(built, tmp_path):
    loop.run(built._replace(config=config(rounds=3)), tmp_path)
    wild = experiment.build(config(**{"client_optimizer.learning_rate": 1e30}))
    with pytest.raises(UserError, match="ditto diverged: the state .* client . .* round 4; lower"):
        loop.run(wild._replace(config=config()), tmp_path, resume=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    rows = writers.read_rows(tmp_path / "metrics.jsonl")
    assert [row["round"] for row in rows] == [0, 3]
    loop.run(built, tmp_path, resume=True)


def test_divergence_in_the_first_round(tmp_path):
    wild = config(**{"client_optimizer.learning_rate": 1e30})
    with pytest.raises(DivergedError, match="lower config.client_optimizer.*no check"):
        loop.run(experiment.build(wild), tmp_path)
    result = writers.read_json(tmp_path / "result.json")
    assert result["diverged"]["round"] <= 1 and "personal_accuracy" not in result


def test_a_model_with_a_loss_that_is_not_finite_is_not_scored(built, tmp_path):
    def evaluate(*args):
        scores = built.programs.evaluate(*args)
        losses = np.array(scores["personal"]["test"]["loss"])
        losses[2] = np.nan
        scores["personal"]["test"]["loss"] = losses
        return scores

    evaluate.compile_seconds = 1
    broken = built._replace(programs=built.programs._replace(evaluate=evaluate))
    with pytest.raises(DivergedError, match="test loss of the personalized model of client 2 is"):
        loop.run(broken, tmp_path)
    assert not writers.read_rows(tmp_path / "metrics.jsonl")


def test_rounds_without_a_client_are_no_loss_of_zero(tmp_path):
    rare = config(
        **{"cohort.dropout": 0.75, "cohort.size": 1, "rounds": 12, "engine.rounds_per_call": 3}
    )
    loop.run(experiment.build(rare), tmp_path)
    rows = writers.read_rows(tmp_path / "metrics.jsonl")[1:]
    empty = [row for row in rows if row["train/cohort"] == 0]
    assert empty and len(empty) < len(rows)
    assert all(row["train/loss"] is None for row in empty)
    assert all(row["train/loss"] > 0.5 for row in rows if row["train/cohort"] > 0)


def test_extending_a_run_is_refused_if_the_method_uses_its_length(tmp_path):
    settings = {"algorithm": "apple", "eval_every": 2, "data.unseen_fraction": 0.0}
    settings["cohort.size"] = 5
    apple, longer = (config(**settings, rounds=rounds) for rounds in (2, 4))
    loop.run(experiment.build(apple), tmp_path / "short")
    with pytest.raises(UserError, match="planned for 2 rounds.*--config.planned_rounds=2"):
        loop.run(experiment.build(longer), tmp_path / "short", resume=True)
    assert writers.read_json(tmp_path / "short" / "config.json")["planned_rounds"] == 2
    # With its length named from the beginning, a run in two parts is the run in one.
    apple.planned_rounds = 4
    loop.run(experiment.build(apple), tmp_path / "parts")
    resumed = loop.run(experiment.build(longer), tmp_path / "parts", resume=True)
    straight = loop.run(experiment.build(longer), tmp_path / "straight")
    assert_same_run(tmp_path / "parts", resumed, (tmp_path / "straight", straight, None))


def test_no_array_of_the_caller_is_lost(built, straight):
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(built.examples))
    assert tree.num_bytes(built.examples.inputs) == 1797 * 64


def test_losses_of_held_out_clients_are_separate(straight):
    directory, _, _ = straight
    row, clients = (
        writers.read_rows(directory / "metrics.jsonl")[-1],
        np.load(directory / "clients.npz"),
    )
    unseen, sizes = clients["unseen"], clients["test_size"]
    assert unseen.sum() == 1
    for who, some in (("", ~unseen), ("unseen_", unseen)):
        losses = clients["personal_test_loss"][some]
        mean = np.average(losses, weights=sizes[some])
        np.testing.assert_allclose(row[f"personal/{who}test_loss"], mean, rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_signal_saves_a_checkpoint(straight, built, tmp_path, number, at):
    """Even where none is saved every so many rounds."""
    seldom = built._replace(config=config(checkpoint_every=0))

    def interrupt(done, scores):
        if done == at:
            signal.raise_signal(number)
            time.sleep(0.2)  # until the thread that reads signals has noted it

    with pytest.raises(stopping.Stopped, match=number.name) as stopped:
        loop.run(seldom, tmp_path, progress=interrupt)
    assert stopped.value.number == number
    saved = checkpoint.folders(tmp_path / "checkpoints")
    assert list(saved) == ([at] if at else [])
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


def test_a_signal_between_an_evaluation_and_its_row(straight, built, tmp_path, monkeypatch):
    """The checkpoint of round 3 comes before its evaluation; its row still has training metrics."""

    def asked(self):
        return signal.SIGTERM if self.calls.append(None) or len(self.calls) == 4 else 0

    monkeypatch.setattr(stopping.StopRequests, "calls", [], raising=False)
    monkeypatch.setattr(stopping.StopRequests, "signal_number", asked)
    with pytest.raises(stopping.Stopped, match="after round 3"):
        loop.run(built, tmp_path)
    assert [row["round"] for row in writers.read_rows(tmp_path / "metrics.jsonl")] == [0]
    monkeypatch.undo()
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


@pytest.fixture(scope="module")
def begun(built, tmp_path_factory):
    """A run after three of six rounds."""
    directory = tmp_path_factory.mktemp("begun")
    loop.run(built._replace(config=config(rounds=3)), directory)
    return directory


@pytest.fixture
def copied(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "copy")


ROW = '{"round": 3, "personal/test_accuracy_weighted": 0.75}\n'


@pytest.mark.parametrize("content", [None, ROW.encode(), b"[]\n5\n", b"\xff\xfe\n"])
def test_rows_are_rewritten_from_the_checkpoint(straight, built, copied, content):
    if content is None:
        (copied / "metrics.jsonl").unlink()
    else:
        (copied / "metrics.jsonl").write_bytes(content)
    assert_same_run(copied, loop.run(built, copied, resume=True), straight)


@pytest.mark.parametrize("name", ["config.json", "engine.json"])
@pytest.mark.parametrize("content", [None, "{", "5"])
def test_the_checkpoint_carries_its_config(straight, built, copied, name, content):
    if content is None:
        (copied / name).unlink()
    else:
        (copied / name).write_text(content)
    other = built._replace(config=config(seed=7))
    with pytest.raises(UserError, match="seed is 7 here and 0 there"):
        loop.run(other, copied, resume=True)
    assert workdir.clients_per_chunk(copied) == built.clients_per_chunk
    assert_same_run(copied, loop.run(built, copied, resume=True), straight)
    assert writers.read_json(copied / "config.json") == workdir.settings(built.config)


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "clients.npz"])
def test_a_damaged_run_counts_as_unfinished(straight, built, tmp_path, name):
    directory, _, _ = straight
    place = shutil.copytree(directory, tmp_path / "copy")
    assert workdir.is_finished(place, built.config)
    content = bytearray((place / name).read_bytes())
    content[-9] ^= 1
    (place / name).write_bytes(content)
    assert not workdir.is_finished(place, built.config)
    assert_same_run(place, loop.run(built, place, resume=True), straight)
    assert workdir.is_finished(place, built.config)


def test_a_run_of_an_earlier_version_is_resumed(built, straight, tmp_path, monkeypatch):
    """Its settings, in the file and in the checkpoint, lack new keys and have an old name."""
    settings = workdir.settings

    def earlier(config):
        content = settings(config)
        del content["adapter"]
        content["data"]["least"] = content["data"].pop("min_size")
        return content

    monkeypatch.setattr(workdir, "settings", earlier)
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(4))
    assert checkpoint.newest_notes(tmp_path)["settings"]["data"].keys() >= {"least"}
    monkeypatch.undo()
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)
