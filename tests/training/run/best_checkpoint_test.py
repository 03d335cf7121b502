"""The checkpoint of the round with the best validation score."""

import jax
import numpy as np
import pytest
from runs import ROUNDS, assert_same_run, config, interrupt_at

from pfljax.engine.clients.on_device import to_host
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, loop, reopen, results, writers
from pfljax.training.study import experiment, vectorized

# Steps that are too large, after which scores fall again.
SETTINGS = {"keep_best": True, "eval_every": 1, "client_optimizer.learning_rate": 1.0}
BEST = 3
EARLIER = 1  # the best of the first two rounds

# Reads that Orbax abandons may end at any later moment, in a thread that complains of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def rounds_in(directory, name=checkpoint.BEST):
    return sorted(int(path.name) for path in (directory / name).iterdir())


@pytest.fixture(scope="module")
def built():
    return experiment.build(config(**SETTINGS))


@pytest.fixture(scope="module")
def straight(built, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    return directory, loop.run(built, directory), None


def best_state(directory, given):
    with reopen.reopen(directory, given, best=True) as opened:
        state = to_host(opened.state, opened.experiment.dataset.num_clients)
        return opened.round, state, opened.evaluate()


@pytest.fixture(scope="module")
def wanted(straight):
    return best_state(straight[0], config(**SETTINGS))


def test_the_best_round_survives_the_latest_ones(straight, wanted):
    directory, result, _ = straight
    rows = writers.read_rows(directory / "metrics.jsonl")
    scores = [row["personal/validation_accuracy_weighted"] for row in rows]
    assert np.argmax(scores) == BEST < ROUNDS - 2 and max(scores) == scores[BEST]
    assert rounds_in(directory) == [BEST] and rounds_in(directory, "checkpoints") == [4, 6]
    round, state, evaluation = wanted
    assert round == int(state.round) == BEST
    with reopen.reopen(directory, config(**SETTINGS)) as latest:
        assert latest.round == ROUNDS
        sizes = latest.experiment.dataset.test.sizes[:4]
    # The state is that of the round: evaluating it gives the scores of its row.
    found = evaluation["personal"]["test"]["accuracy"][:4].sum() / sizes.sum()
    assert found == pytest.approx(result["personal_accuracy"]["at_best_validation"])
    assert found == pytest.approx(rows[BEST]["personal/test_accuracy_weighted"])
    assert found != pytest.approx(rows[-1]["personal/test_accuracy_weighted"])


def test_keeping_it_changes_no_number(straight, tmp_path):
    without = loop.run(experiment.build(config(**{**SETTINGS, "keep_best": False})), tmp_path)
    assert_same_run(tmp_path, without, straight)
    assert not (tmp_path / checkpoint.BEST).exists()


@pytest.mark.parametrize("last", [1, 3, 4, 5, 6])
def test_an_interruption_leaves_no_trace(straight, wanted, built, tmp_path, last):
    """Also of rounds that were the best ones, and are trained again or not."""
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(last))
    before = rounds_in(tmp_path)
    assert before[-1] == min(last, BEST)
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)
    assert rounds_in(tmp_path) == [BEST]
    round, state, _ = best_state(tmp_path, config(**SETTINGS))
    assert round == BEST
    jax.tree.map(np.testing.assert_array_equal, state, wanted[1])


def test_a_run_that_goes_back_has_the_best_round_of_that_time(built, tmp_path, capsys):
    """The checkpoint of round 4 is damaged, and that of round 2 has another best round."""
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(4))
    assert rounds_in(tmp_path, "checkpoints") == [2, 4]
    assert rounds_in(tmp_path) == [EARLIER, BEST]
    for path in (tmp_path / "checkpoints" / "4").rglob("manifest*"):
        path.write_bytes(b"")
    loop.run(built._replace(config=config(**SETTINGS, rounds=2)), tmp_path, resume=True)
    assert "checkpoint of round 4 is damaged" in capsys.readouterr().err
    assert rounds_in(tmp_path) == [EARLIER]
    assert best_state(tmp_path, config(**SETTINGS, rounds=2))[0] == EARLIER


def test_damage_is_found(built, tmp_path, capsys):
    loop.run(built, tmp_path)
    content = tmp_path / checkpoint.BEST / str(BEST)
    for path in [path for path in content.rglob("*") if path.is_file() and "/d/" in str(path)]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"checkpoint of round {BEST} cannot be used"):
        best_state(tmp_path, config(**SETTINGS))


def test_an_earlier_best_round_is_not_taken_for_the_best(built, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(4))
    assert rounds_in(tmp_path) == [EARLIER, BEST]
    for path in (tmp_path / checkpoint.BEST / str(BEST)).rglob("manifest*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=f"no intact checkpoint of round {BEST}, the best"):
        best_state(tmp_path, config(**SETTINGS))
    with pytest.raises(UserError, match=f"no intact checkpoint of round {BEST}, the best"):
        best_state(tmp_path, config(**SETTINGS))  # it was renamed


def test_each_of_vectorized_runs_has_its_own(tmp_path):
    settings = [config(**{**SETTINGS, "rounds": 4, "seed": seed}) for seed in (0, 1)]
    rates = [1.0, 0.05]
    for own, rate in zip(settings, rates, strict=True):
        own.client_optimizer.learning_rate = rate
    places = [tmp_path / "0", tmp_path / "1"]
    loop.run_vectorized(vectorized.build(settings), settings, places)
    for own, place in zip(settings, places, strict=True):
        rows = writers.read_rows(place / "metrics.jsonl")
        best = int(np.argmax([row["personal/validation_accuracy_weighted"] for row in rows]))
        assert rounds_in(place)[-1] == best
        assert best_state(place, own)[0] == best
    assert rounds_in(places[0])[-1] < rounds_in(places[1])[-1]


def test_the_first_of_equal_rounds_and_the_smallest_loss(built):
    task = built.task._replace(score="loss", lower_is_better=("loss",))

    def rows(*scores):
        named = "personal/validation_loss_weighted"
        return [{"round": 10 * number, named: score} for number, score in enumerate(scores)]

    assert results.best_round(task, []) is None
    assert results.best_round(task, rows(3.0, 1.0, float("nan"), 1.0, 2.0)) == 10
    assert results.best_round(task, rows(3.0, None)) is None
    assert results.best_round(task._replace(lower_is_better=()), rows(1.0, 2.0, 2.0)) == 10


def test_what_cannot_keep_it_is_refused(straight, tmp_path):
    with pytest.raises(UserError, match="use config.engine.residence='device'"):
        experiment.build(config(**SETTINGS, **{"engine.residence": "host"}))
    with pytest.raises(UserError, match="set config.data.validation_fraction"):
        experiment.build(config(**SETTINGS, **{"data.validation_fraction": 0.0}))
    other = config(**{**SETTINGS, "keep_best": False})
    with pytest.raises(UserError, match="train the run with config.keep_best=True"):
        best_state(straight[0], other)
    with pytest.raises(UserError, match="another config: keep_best is False here and True there"):
        loop.run(experiment.build(other), straight[0], resume=True)
