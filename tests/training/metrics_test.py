"""Metrics of whole outputs in a run: rows, results, tables, and the score that chooses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import config, interrupt_at

from pfljax import metrics
from pfljax.errors import UserError
from pfljax.metrics import METRICS, Metric
from pfljax.report import finished, plots, tables
from pfljax.training.run import loop, results, workdir, writers
from pfljax.training.study import experiment, vectorized

NAMES = ("auc", "nll", "loss")


def measured(**changes):
    return config(metrics=NAMES, score="auc", **changes)


@pytest.fixture(scope="module")
def built():
    return experiment.build(measured())


@pytest.fixture(scope="module")
def straight(built, tmp_path_factory):
    directory, reports = tmp_path_factory.mktemp("straight"), []
    result = loop.run(built, directory, progress=lambda *news: reports.append(news))
    return directory, result, reports


def test_rows_have_every_metric_of_every_model_and_split(straight):
    directory, _, _ = straight
    rows = writers.read_rows(directory / "metrics.jsonl")
    fields = (*metrics.Summary._fields, "clients")
    for row in rows:
        for model in ("personal", "global"):
            for split in ("test", "validation", "unseen_test", "unseen_validation"):
                for name in ("accuracy", "loss", "auc", "nll"):
                    assert {f"{model}/{split}_{name}_{field}" for field in fields} <= set(row)
                # Without whole outputs the same mean over examples.
                for field in metrics.Summary._fields:
                    nll, loss = (row[f"{model}/{split}_{name}_{field}"] for name in ("nll", "loss"))
                    assert nll == pytest.approx(loss, rel=1e-4, abs=1e-6)
                assert row[f"{model}/{split}_loss"] == row[f"{model}/{split}_loss_weighted"]
    assert rows[-1]["personal/test_auc_clients"] == 4
    assert rows[-1]["personal/unseen_test_auc_clients"] == 1


def test_means_over_clients(straight):
    directory, _, _ = straight
    row = writers.read_rows(directory / "metrics.jsonl")[-1]
    with np.load(directory / "clients.npz") as clients:
        values, sizes, unseen = (
            clients[name] for name in ("personal_test_auc", "test_size", "unseen")
        )
    assert len(set(values)) > 2 and np.all((values > 0.3) & (values <= 1))
    weighted = np.average(values[~unseen], weights=sizes[~unseen])
    assert row["personal/test_auc_weighted"] == pytest.approx(weighted)
    assert row["personal/test_auc_unweighted"] == pytest.approx(values[~unseen].mean())
    assert row["personal/test_auc_std"] == pytest.approx(values[~unseen].std())
    assert row["personal/test_auc_worst_decile"] == pytest.approx(values[~unseen].min())
    assert row["personal/unseen_test_auc_weighted"] == pytest.approx(values[unseen][0])


def test_the_score_chooses_the_round_of_all_metrics(straight):
    directory, result, reports = straight
    rows = writers.read_rows(directory / "metrics.jsonl")
    assert result["score_name"] == "auc" and result["further_metrics"] == ["nll", "loss"]
    assert "personal_accuracy" not in result
    for model in ("personal", "global"):
        validation = [row[f"{model}/validation_auc_weighted"] for row in rows]
        best = rows[int(np.argmax(validation))]
        assert result[f"{model}_score"] == result["metrics"]["auc"][model]
        for name in ("accuracy", "loss", "auc", "nll"):
            found = result["metrics"][name][model]
            assert found["at_best_validation"] == best[f"{model}/test_{name}_weighted"]
            assert found["last"] == rows[-1][f"{model}/test_{name}_weighted"]
            values = [row[f"{model}/test_{name}_weighted"] for row in rows]
            lower = name in ("loss", "nll")
            key, of = ("min_over_rounds", min) if lower else ("max_over_rounds", max)
            assert found[key] == of(values)
            worst, mean = found["worst_decile"], found["unweighted_last"]
            assert worst > mean if lower else worst < mean
    assert reports[-1][1]["personal"] == rows[-1]["personal/test_auc_weighted"]


def test_an_interruption_leaves_no_trace(straight, built, tmp_path):
    directory, expected, _ = straight
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(4))
    result = loop.run(built, tmp_path, resume=True)
    assert result["metrics"] == expected["metrics"]
    files = [at / "metrics.jsonl" for at in (tmp_path, directory)]
    assert files[0].read_text() == files[1].read_text()


def test_tables_and_curves(straight, tmp_path):
    directory, result, _ = straight
    runs = {"ditto": [finished.read_run(directory)]}
    columns = tables.columns_of(runs)
    headings = [tables.heading(column) for column in columns]
    assert headings[0] == "personalized (auc)"
    at = headings.index("negative log-likelihood")
    assert headings[at : at + 4] == [
        *("negative log-likelihood", "global negative log-likelihood", "loss", "global loss")
    ]
    assert headings[at + 4] == "time per round (ms)"
    nll = result["metrics"]["nll"]["global"]["last"]
    assert float(tables.cell(runs["ditto"], columns[at + 1])) == pytest.approx(nll, rel=1e-3)
    text = tables.explanation(runs)
    assert "Test AUC weighted" in text and "negative log-likelihood (lower is better)" in text
    plots.plot_clients(tmp_path / "clients.png", runs, "A title")
    assert (tmp_path / "clients.png").stat().st_size > 10_000
    heights = []
    for names in (["nll", "loss"], []):
        run = runs["ditto"][0]
        some = run._replace(result={**run.result, "further_metrics": names})
        plots.plot_curves(tmp_path / "curves.png", {"ditto": [some]}, "A title")
        from matplotlib import image

        heights.append(image.imread(tmp_path / "curves.png").shape[0])
    assert heights[0] > 2 * heights[1]


def test_a_population_on_the_host(straight, tmp_path):
    directory, _, _ = straight
    loop.run(experiment.build(measured(**{"engine.residence": "host"})), tmp_path)
    ours, theirs = (writers.read_rows(at / "metrics.jsonl")[-1] for at in (tmp_path, directory))
    for key in theirs:
        if "_auc_" in key or "_nll_" in key:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key


def test_seeds_in_one_program(straight, built, tmp_path):
    directory, _, _ = straight
    configs = [measured(seed=seed) for seed in (0, 1)]
    together = vectorized.build(configs, built)
    directories = [tmp_path / str(seed) for seed in (0, 1)]
    found = loop.run_vectorized(together, configs, directories)
    alone = writers.read_json(directory / "result.json")["metrics"]
    for name in ("auc", "nll", "loss"):
        assert found[0]["metrics"][name]["personal"] == pytest.approx(
            alone[name]["personal"], rel=1e-3
        )
    assert found[0]["metrics"]["auc"] != found[1]["metrics"]["auc"]


def half_undefined(outputs, targets, mask):
    """A tenth of the mean target, and undefined where the mean is above 4."""
    mean = jnp.sum(targets * mask) / jnp.sum(mask)
    return jnp.where(mean > 4, jnp.nan, mean / 10)


def test_clients_for_which_a_metric_is_undefined(monkeypatch, tmp_path):
    """A metric from outside the package, in the registry alone, reaches every file."""
    shown = Metric(half_undefined, ("classification",), "mean target", percent=True)
    monkeypatch.setitem(METRICS, "mean_target", shown)
    changes = {"rounds": 1, "eval_every": 1, "data.alpha": 0.1, "engine.eval_clients": 4}
    loop.run(experiment.build(config(metrics=("mean_target",), **changes)), tmp_path)
    run = finished.read_run(tmp_path)
    values, sizes = (run.clients[name] for name in ("personal_test_mean_target", "test_size"))
    known = ~run.clients["unseen"] & np.isfinite(values)
    row = run.rows[-1]
    assert 0 < known.sum() < row["personal/test_loss_clients"]
    assert row["personal/test_mean_target_clients"] == known.sum()
    assert row["personal/test_mean_target_weighted"] == pytest.approx(
        np.average(values[known], weights=sizes[known])
    )
    json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    sentences = " ".join(tables.notes({"ditto": [run]}))
    total = row["personal/test_loss_clients"]
    assert f"mean target is defined for {known.sum()} of {total} clients" in sentences
    headings = [tables.heading(column) for column in tables.columns_of({"ditto": [run]})]
    assert "mean target (%)" in headings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metrics": ("auk",)}, "config.metrics 'auk'; .*Did you mean 'auc'"),
        ({"metrics": ("rmse",)}, "'rmse', which is for regression and rating, .*classification"),
        ({"metrics": ("auc", "auc")}, "contains 'auc' twice"),
        ({"metrics": (3,)}, "config.metrics has 3"),
        ({"score": "auc"}, "'auc', which is not computed; add it to config.metrics"),
        ({"score": "accuracies"}, "config.score 'accuracies'.*Did you mean 'accuracy'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_compiled(changes, message, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", pytest.fail)
    with pytest.raises(UserError, match=message):
        experiment.build(config(**changes))


def test_a_metric_that_is_no_number_is_refused(monkeypatch):
    of_rows = Metric(lambda outputs, targets, mask: outputs[:, 0], ("classification",), "rows")
    monkeypatch.setitem(METRICS, "rows", of_rows)
    with pytest.raises(UserError, match="'rows' returns .* must return one"):
        experiment.build(config(metrics=("rows",)))


def as_before(row):
    """A row as an earlier version wrote it, with the score and the mean loss only."""
    return {
        key: value
        for key, value in row.items()
        if "_loss_" not in key and not key.endswith("_clients")
    }


def test_a_run_of_an_earlier_version_can_be_resumed(tmp_path, monkeypatch):
    """Its settings lack the new keys, and its rows the metrics other than score and loss."""
    made = config()
    built = experiment.build(made)

    def settings_before(config, settings=workdir.settings):
        return {k: v for k, v in settings(config).items() if k not in ("metrics", "score")}

    def row_before(*args, row=results.metrics_row):
        return as_before(row(*args))

    with monkeypatch.context() as before, pytest.raises(KeyboardInterrupt):
        before.setattr(workdir, "settings", settings_before)
        before.setattr(results, "metrics_row", row_before)
        loop.run(built, tmp_path, progress=interrupt_at(4))
    assert "metrics" not in workdir.settings_before(tmp_path)
    result = loop.run(built, tmp_path, resume=True)
    rows = writers.read_rows(tmp_path / "metrics.jsonl")
    assert ["personal/test_loss_std" in row for row in rows] == [False, False, True]
    assert None not in result["personal_accuracy"].values()
    loss = result["metrics"]["loss"]["personal"]
    assert loss["last"] == rows[-1]["personal/test_loss"] and loss["min_over_rounds"] is None


def test_results_of_an_earlier_version_are_compared(straight, tmp_path):
    result = loop.run(experiment.build(config(rounds=3)), tmp_path)
    run = finished.read_run(tmp_path)
    kept = {k: v for k, v in result.items() if k not in ("metrics", "further_metrics")}
    old = finished.Run(kept, [as_before(row) for row in run.rows], run.clients)
    columns = [tables.columns_of({"ditto": [one]}) for one in (old, run)]
    assert columns[0] == columns[1] and tables.heading(columns[0][0]) == "personalized (%)"
    both = {"ditto": [old], "other": [run]}
    table = tables.cells(both, columns[0])
    assert table[0][1] == table[1][1] and tables.notes(both)
    plots.plot_curves(tmp_path / "curves.png", both, "A title")
