"""From per-client sums to the numbers of a table."""

import numpy as np
import pytest

from pfljax.metrics import Summary, across_rounds, best_round, over_rounds, summarize


def test_by_hand():
    summary = summarize(np.array([8.0, 1.0, 3.0]), np.array([10, 2, 4]))
    assert summary.weighted == pytest.approx(12 / 16)
    means = [0.8, 0.5, 0.75]
    assert summary.unweighted == pytest.approx(sum(means) / 3)
    mean = sum(means) / 3
    assert summary.std == pytest.approx((sum((m - mean) ** 2 for m in means) / 3) ** 0.5)
    assert summary.worst_decile == pytest.approx(0.5)


@pytest.mark.parametrize("clients, worst", [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_tenth_is_rounded_up(clients, worst):
    order = np.random.default_rng(0).permutation(clients)
    summary = summarize(order / clients, np.ones(clients))
    assert summary.worst_decile == pytest.approx(np.arange(worst).mean() / clients)


def test_clients_without_examples_are_left_out():
    some = summarize(np.array([8.0, 1.0]), np.array([10, 2]))
    assert summarize(np.array([0, 8.0, 0, 1.0]), np.array([0, 10, 0, 2])) == some
    assert summarize(np.array([0.0, 0.0]), np.array([0, 0])) is None
    assert summarize(np.array([]), np.array([])) is None


def test_single_precision_sums_are_added_in_double():
    sums = np.full(300_000, 0.1, np.float32)
    summary = summarize(sums, np.ones(len(sums), np.int32))
    assert summary.weighted == pytest.approx(float(np.float32(0.1)), abs=1e-12)


def rounds(*weighted):
    return [None if w is None else Summary(w, w - 0.1, 0.01, w - 0.3) for w in weighted]


def rows_of(metric, **splits):
    """The rows of a run in which the personalized models have these summaries."""
    rows = [{"round": number} for number in range(len(splits["test"]))]
    for split, summaries in splits.items():
        for row, summary in zip(rows, summaries, strict=True):
            fields = {} if summary is None else summary._asdict()
            prefix = f"personal/{split}_{metric}_"
            row.update({prefix + field: value for field, value in fields.items()})
    return rows


def of_score(test, validation, unseen, *, more_is_better=True):
    """What a result has for the score, by which the round is chosen too."""
    rows = rows_of("score", test=test, validation=validation, unseen_test=unseen)
    chosen = best_round(rows, "personal", "score", more_is_better=more_is_better)
    return over_rounds(rows, "personal", "score", chosen, more_is_better=more_is_better)


def test_the_round_is_chosen_on_validation_examples():
    result = of_score(rounds(0.5, 0.9, 0.7, 0.6), rounds(0.1, 0.3, 0.8, 0.2), rounds(*[None] * 4))
    assert result == pytest.approx(
        {
            "last": 0.6,
            "at_best_validation": 0.7,
            "max_over_rounds": 0.9,
            "unweighted_last": 0.5,
            "std": 0.01,
            "worst_decile": 0.3,
        }
    )


def test_the_first_of_equally_good_rounds_is_chosen():
    result = of_score(rounds(0.5, 0.9, 0.7), rounds(0.1, 0.8, 0.8), rounds(None, None, None))
    assert result["at_best_validation"] == 0.9


def test_without_validation_examples_nothing_is_chosen():
    result = of_score(rounds(0.5, 0.9), rounds(None, None), rounds(None, None))
    assert result["at_best_validation"] is None
    assert "unseen_last" not in result


def test_unseen_clients_have_their_own_number():
    result = of_score(rounds(0.5, 0.9), rounds(0.5, 0.4), rounds(0.2, 0.3))
    assert result["unseen_last"] == 0.3
    assert result["last"] == 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("more", [True, False])
def test_a_round_that_is_not_finite_is_never_the_best(bad, more):
    test, validation = rounds(0.5, bad, 0.7), rounds(0.1, bad, 0.3)
    result = of_score(test, validation, rounds(None, None, None), more_is_better=more)
    name = "max_over_rounds" if more else "min_over_rounds"
    assert result[name] == result["at_best_validation"] == (0.7 if more else 0.5)


def test_all_metrics_are_of_the_round_that_the_score_chooses():
    """The loss is best in another round than the accuracy."""
    accuracy = rows_of("accuracy", test=rounds(0.5, 0.9, 0.7), validation=rounds(0.1, 0.2, 0.8))
    loss = rows_of("loss", test=rounds(3.0, 1.0, 2.0), validation=rounds(3.0, 1.0, 2.0))
    rows = [one | other for one, other in zip(accuracy, loss, strict=True)]
    chosen = best_round(rows, "personal", "accuracy")
    result = over_rounds(rows, "personal", "loss", chosen, more_is_better=False)
    assert (result["at_best_validation"], result["min_over_rounds"]) == (2.0, 1.0)
    assert best_round(rows, "personal", "loss", more_is_better=False) == 1


def test_a_metric_that_a_row_lacks_has_no_best_round():
    """As in a run that an earlier version began."""
    rows = rows_of("auc", test=rounds(None, 0.9, 0.7), validation=rounds(None, 0.5, 0.4))
    assert best_round(rows, "personal", "auc") is None
    assert across_rounds(rows, "personal", "auc", 1) == {
        "at_best_validation": 0.9,
        "max_over_rounds": None,
    }
    assert over_rounds(rows[:1], "personal", "auc", None) is None
