"""From data sets of several kinds to tasks, and a run whose score is an error."""

import json

import jax
import numpy as np
import pytest

from pfljax.data import FederatedDataset
from pfljax.data.dataset import Split
from pfljax.errors import UserError
from pfljax.report import finished, plots, tables
from pfljax.training.run import loop
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment
from pfljax.training.study.task import build_task as build_with_frozen

CLIENTS, EACH = 4, 12


def dataset(kind, inputs, targets, num_classes=0, **more):
    """A data set that says what its targets are; each client has six training examples."""

    class Declared(FederatedDataset):
        task = kind

        def class_counts(self):
            return np.zeros((self.num_clients, self.num_classes), np.int32)

    for name, value in more.items():
        setattr(Declared, name, value)
    start = np.arange(CLIENTS, dtype=np.int32) * EACH
    splits = [
        Split(start + begin, np.full(CLIENTS, size, np.int32))
        for begin, size in ((0, 6), (6, 2), (8, 4))
    ]
    return Declared("toy", inputs, targets, *splits, num_classes)


def config_of(model, **arguments):
    config = config_lib.default_config()
    with config.unlocked():
        config.model = {"name": model, **arguments}
    return config


def build_task(config, dataset):
    make, frozen = build_with_frozen(config, dataset)
    return make(frozen)


def ids(*shape):
    return np.ones((CLIENTS * EACH, *shape), np.int32)


@pytest.mark.parametrize(
    "kind, inputs, targets, classes, more, model, outputs",
    [
        ("classification", ids(5), ids(), 9, {"vocabulary": (7,)}, "lstm", (9,)),
        ("next_token", ids(5), ids(), 9, {"vocabulary": (9,)}, "lstm", (9,)),
        ("next_token", ids(5), ids(5), 9, {"vocabulary": (9,)}, "lstm_lm", (5, 9)),
        ("rating", ids(2), ids(), 0, {"vocabulary": (3, 4)}, "matrix_factorization", (1,)),
        ("regression", ids(2), ids(), 0, {}, "logistic", (1,)),
        ("multi_label", ids(2), ids(6), 0, {}, "mlp", (6,)),
        ("ranking", ids(4, 2), ids(), 0, {"vocabulary": (3, 4)}, "matrix_factorization", (4,)),
    ],
)
def test_the_data_set_decides_the_task(kind, inputs, targets, classes, more, model, outputs):
    task = build_task(config_of(model), dataset(kind, inputs, targets, classes, **more))

    out = jax.eval_shape(lambda key: task.predict(task.init(key), inputs[:2]), jax.random.key(0))
    assert out.shape == (2, *outputs)
    scores = {"rating": "mse", "regression": "mse", "ranking": "ndcg"}
    assert task.score == scores.get(kind, "accuracy")


@pytest.mark.parametrize(
    "kind, inputs, targets, classes, more, model, message",
    [
        ("classification", ids(5), ids(), 9, {"vocabulary": (7,)}, "mlp", "to one of fasttext"),
        ("classification", ids(5), ids(), 9, {}, "lstm", "config.model.vocabulary"),
        ("next_token", ids(5), ids(5), 9, {"vocabulary": (9,)}, "lstm", r"needs \(5, 9\)"),
        ("sorting", ids(5), ids(), 9, {}, "mlp", "sorting"),
        ("ranking", ids(4, 2), ids(), 0, {"vocabulary": (3, 4)}, "lstm", r"vocabulary"),
    ],
)
def test_models_that_do_not_answer_the_question(
    kind, inputs, targets, classes, more, model, message
):
    with pytest.raises(UserError, match=message):
        build_task(config_of(model), dataset(kind, inputs, targets, classes, **more))


def test_a_vocabulary_may_be_named_where_the_data_set_has_none():
    given = dataset("classification", ids(5), ids(), 9)
    task = build_task(config_of("lstm", vocabulary=7), given)
    assert task.num_classes == 9


def test_a_run_that_is_scored_by_an_error(tmp_path):
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(CLIENTS * EACH, 3)).astype(np.float32)
    noise = 0.1 * draw.normal(size=len(inputs))
    targets = (50 + 10 * (inputs @ [1.0, -0.5, 0.2] + noise)).astype(np.float32)
    toy = dataset("regression", inputs, targets, target_mean=50.0, target_std=11.0)
    config = config_of("logistic")
    config.rounds, config.eval_every, config.checkpoint_every = 20, 10, 0
    config.algorithm, config.engine.devices = "fedavg", 1
    built = experiment.build(config, toy)
    result = loop.run(built, tmp_path)
    assert (result["score_name"], result["more_is_better"]) == ("mse", False)
    assert "personal_accuracy" not in result
    found = result["personal_score"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    errors = [row["personal/test_mse_weighted"] for row in rows]
    assert found["last"] == errors[-1] < 0.1 * errors[0]
    assert found["min_over_rounds"] == min(errors)
    assert found["worst_decile"] >= found["unweighted_last"]
    runs = {"fedavg": [finished.read_run(tmp_path)]}
    columns = {column.title: column for column in tables.columns_of(runs)}
    assert tables.heading(columns["personalized"]) == "personalized (mse)"
    assert tables.cell(runs["fedavg"], columns["personalized"]) == f"{found['last']:.4g}"
    assert "mean squared errors" in tables.explanation(runs)
    for plot in (plots.plot_curves, plots.plot_clients):
        plot(tmp_path / "plot.png", runs, "A title")


def measured(toy, model, metrics):
    """The experiment of a single round, with metrics."""
    config = config_of(model)
    config.rounds, config.eval_every, config.checkpoint_every = 1, 1, 0
    config.algorithm, config.engine.devices, config.metrics = "fedavg", 1, metrics
    return experiment.build(config, toy)


def test_metrics_of_whole_outputs_are_in_the_units_of_the_targets(tmp_path):
    """The mean squared error and the absolute error are those that the task sums."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(CLIENTS * EACH, 3)).astype(np.float32)
    targets = (50 + 10 * draw.normal(size=len(inputs))).astype(np.float32)
    toy = dataset("regression", inputs, targets, target_mean=50.0, target_std=11.0)
    result = loop.run(measured(toy, "logistic", ("rmse", "r2", "mae")), tmp_path)
    assert result["further_metrics"] == ["rmse", "r2", "mae"]
    with np.load(tmp_path / "clients.npz") as clients:
        found = {name: clients[f"personal_test_{name}"] for name in ("rmse", "r2", "mse")}
    np.testing.assert_allclose(found["rmse"] ** 2, found["mse"], rtol=1e-5)
    tested = [targets[begin : begin + 4] for begin in range(8, CLIENTS * EACH, EACH)]
    expected = 1 - found["mse"] / [np.var(own) for own in tested]
    np.testing.assert_allclose(found["r2"], expected, rtol=1e-4)
    lower = {name: not found["more_is_better"] for name, found in result["metrics"].items()}
    assert lower == {"loss": True, "mae": True, "mse": True, "rmse": True, "r2": False}
    for name, entry in result["metrics"].items():
        worst, mean = (entry["personal"][field] for field in ("worst_decile", "unweighted_last"))
        assert worst > mean if lower[name] else worst < mean


def test_metrics_of_a_ranking(tmp_path):
    draw = np.random.default_rng(0)
    items = draw.integers(0, 9, (CLIENTS * EACH, 7, 2)).astype(np.int32)
    toy = dataset("ranking", items, 0 * ids(), vocabulary=(9, 9))
    built = measured(toy, "matrix_factorization", ("mrr", "auc"))
    result = loop.run(built, tmp_path)
    assert 1 / 7 < result["metrics"]["mrr"]["personal"]["last"] < 1
    # The area under the curve of an example is a metric that the ranking sums.
    assert list(built.task.client_metrics) == ["mrr"] and "auc" in result["metrics"]


@pytest.mark.parametrize("metrics", [("auc",), ("nll", "loss")])
def test_a_language_model_keeps_no_outputs(metrics):
    toy = dataset("next_token", ids(5), ids(5), 9, vocabulary=(9,))
    with pytest.raises(UserError, match=r"the task of toy is next_token; .* accuracy, loss"):
        measured(toy, "lstm_lm", metrics)
