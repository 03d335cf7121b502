"""Tables and plots of finished runs, from runs written by hand."""

import csv
import json

import numpy as np
import pytest
import rich.console
from matplotlib import figure

from pfljax.errors import UserError
from pfljax.report import finished, plots, tables
from pfljax.training.run import writers


def write_run(directory, *, seed, last, global_last, seconds=0.0123, unseen=None):
    """Leaves what a finished run leaves."""
    directory.mkdir(parents=True)
    personal = {"last": last, "at_best_validation": last - 0.01, "worst_decile": last / 2}
    if unseen is not None:
        personal["unseen_last"] = unseen
    result = {
        "algorithm": directory.name,
        "seed": seed,
        "personal_accuracy": personal,
        "global_accuracy": None if global_last is None else {"last": global_last},
        "seconds_per_round": seconds,
        "upload_bytes": 12345,
        "download_bytes": 0,
        "provenance": {"commit": f"{seed}" * 40, "versions": {"jax": "0.10"}},
    }
    writers.write_json(directory / "result.json", result)
    rows = [
        {"round": round, "personal/test_accuracy_weighted": last * round / 10}
        for round in (0, 5, 10)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    accuracy = np.array([last, last / 2, np.nan])  # the last client has no test examples
    np.savez(directory / "clients.npz", personal_test_accuracy=accuracy)


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        place = tmp_path / str(seed)
        write_run(place / "ditto", seed=seed, last=0.8 + 0.02 * seed, global_last=0.5)
        write_run(place / "local", seed=seed, last=0.7, global_last=None)
    return {
        name: [finished.read_run(tmp_path / str(seed) / name) for seed in (0, 1)]
        for name in ("ditto", "local")
    }


def columns(runs):
    return {column.title: column for column in tables.columns_of(runs)}


def test_cells(runs):
    by_title = columns(runs)
    ditto = {title: tables.cell(runs["ditto"], column) for title, column in by_title.items()}
    deviation = 100 * np.std([0.8, 0.82], ddof=1)
    assert ditto == {
        "personalized": f"81.00 ± {deviation:.2f}",
        "at best validation": f"80.00 ± {deviation:.2f}",
        "worst decile": f"40.50 ± {deviation / 2:.2f}",
        "global": "50.00 ± 0.00",
        "time per round": "12.3",
        "upload": "12.35",
        "download": "0",
    }
    assert tables.cell(runs["local"], by_title["global"]) == "-"
    assert tables.cell(runs["local"][:1], by_title["personalized"]) == "70.00"


def test_errors_show_their_deviation_with_the_same_decimals(tmp_path):
    def run(error):
        result = {"score_name": "mse", "more_is_better": False, "personal_score": {"last": error}}
        return finished.Run(result, [], {})

    runs = {"local": [run(338.2), run(344.7)], "fedper": [run(0.8371), run(0.8379)]}
    (column,) = tables.columns_of(runs)
    assert tables.heading(column) == "personalized (mse)"
    assert tables.cell(runs["local"], column) == "341.4 ± 4.6"
    assert tables.cell(runs["fedper"], column) == "0.8375 ± 0.0006"
    assert tables.cell([run(0.0)], column) == "0.000"
    assert "lower is better" in tables.explanation(runs)
    assert plots.axis(runs) == ("mse", 1, " (lower is better)")


def test_a_column_without_values_is_omitted(runs, tmp_path):
    assert "unseen" not in columns(runs)
    write_run(tmp_path / "unseen" / "fedavg", seed=0, last=0.5, global_last=0.5, unseen=0.25)
    runs["fedavg"] = [finished.read_run(tmp_path / "unseen" / "fedavg")]
    assert tables.cell(runs["fedavg"], columns(runs)["unseen"]) == "25.00"
    assert tables.cell(runs["ditto"], columns(runs)["unseen"]) == "-"


@pytest.mark.parametrize("width", [40, 100])
def test_the_table_for_a_terminal(runs, width):
    runs = {"fedavg_ft": runs["ditto"], **runs}
    console = rich.console.Console(width=width, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(tables.table(runs, "A title"))
    text = console.export_text()
    assert "A title" in text and "fedavg_ft " in text
    assert ("81.00 ± 1.41" in text and "(kB)" in text) == (width == 100)


def test_markdown(runs, tmp_path):
    tables.write_markdown(tmp_path / "c.md", runs, "A title")
    text = (tmp_path / "c.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# A title"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1, "the rows have unequal lengths"
    assert table[2].startswith("| ditto | 81.00 ± 1.41 | 80.00 ± 1.41 |")
    assert tables.EXPLANATION in text


def test_csv(runs, tmp_path):
    tables.write_csv(tmp_path / "c.csv", runs)
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["algorithm"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("ditto", "local") for seed in ("0", "1")
    ]
    assert float(rows[1]["personal_accuracy.last"]) == 0.8 + 0.02
    assert not [name for name in rows[0] if "commit" in name or "versions" in name]
    assert rows[2]["global_accuracy"] == "" and rows[0]["global_accuracy.last"] == "0.5"


@pytest.mark.parametrize("plot", [plots.plot_curves, plots.plot_clients])
@pytest.mark.parametrize("seeds", [1, 2])
def test_plots(runs, tmp_path, plot, seeds):
    from matplotlib import image

    some = {name: all[:seeds] for name, all in runs.items()}
    plot(tmp_path / "plot.png", some, "A title")
    pixels = image.imread(tmp_path / "plot.png")
    assert min(pixels.shape[:2]) > 300
    colors = np.unique((255 * pixels[..., :3]).astype(np.uint8).reshape(-1, 3), axis=0)
    reached = {tuple(color) for color in colors.tolist()}
    blue, orange = (31, 119, 180), (255, 127, 14)
    assert any(np.abs(np.subtract(blue, color)).max() < 60 for color in reached)
    assert any(np.abs(np.subtract(orange, color)).max() < 60 for color in reached)
    white = np.mean(np.all(pixels[..., :3] > 0.98, axis=-1))
    assert 0.5 < white < 0.99


def test_methods_beyond_ten_have_colors(runs, tmp_path):
    many = {f"method {number}": runs["ditto"] for number in range(25)}
    plots.plot_curves(tmp_path / "curves.png", many, "A title")
    plots.plot_clients(tmp_path / "clients.png", many, "A title")
    assert (tmp_path / "clients.png").stat().st_size > 10_000


def with_examples(runs, count):
    for seeds in runs.values():
        for run in seeds:
            run.result["test_examples"] = count
    return runs


def test_differences_within_the_sampling_error_are_marked(runs):
    best = 0.81  # ditto's mean; local has 0.70
    for count, marked in ((20, True), (2000, False)):
        found = tables.resolution(with_examples(runs, count))
        assert found == pytest.approx(1.96 * (2 * best * (1 - best) / count) ** 0.5)
        ditto, local = tables.cells(runs, tables.columns_of(runs))
        assert "≈" not in ditto[1] and ("≈" in local[1]) == marked
    assert "2,000 test examples per seed: one is 0.05 points" in "\n".join(tables.notes(runs))


def test_a_method_that_diverged_is_marked_and_not_drawn(runs, tmp_path):
    reason = "ditto diverged: the server's state is not finite in round 3; lower ..."
    result = {**runs["ditto"][1].result, "diverged": {"round": 3, "reason": reason}}
    del result["personal_accuracy"], result["global_accuracy"]
    runs = {**runs, "ditto": [runs["ditto"][0], finished.Run(result, [], {})]}
    ditto, local = tables.cells(runs, tables.columns_of(runs))
    assert ditto[:3] == ("ditto", "1 of 2 diverged", "-") and local[1] == "70.00 ± 0.00"
    assert reason in tables.notes(runs)
    plots.plot_curves(tmp_path / "curves.png", runs, "A title")
    plots.plot_clients(tmp_path / "clients.png", runs, "A title")


def comparison(tmp_path, algorithms=("ditto",), seeds=(0,)):
    return finished.collect(tmp_path, algorithms, seeds)


def test_other_methods_in_the_directory_are_shown_if_they_compare(tmp_path):
    for name, rounds in (("ditto", 10), ("fedper", 10), ("fedrep", 20)):
        place = tmp_path / name / "seed_0"
        write_run(place, seed=0, last=0.5, global_last=None)
        result = writers.read_json(place / "result.json")
        writers.write_json(place / "result.json", {**result, "rounds": rounds})
    write_run(tmp_path / "local" / "seed_1", seed=1, last=0.5, global_last=None)
    runs, left_out = comparison(tmp_path)
    assert list(runs) == ["ditto", "fedper"]
    assert left_out == [
        "fedrep is not shown: its runs have rounds 20 instead of 10.",
        "local is not shown: some of the seeds are missing.",
    ]


def test_runs_of_other_splits_are_not_shown(tmp_path):
    others = {"ditto": {"split": "by_item"}, "fedper": {"split": "plain"}, "fedrep": {}}
    for name, keys in others.items():
        place = tmp_path / name / "seed_0"
        write_run(place, seed=0, last=0.5, global_last=None)
        result = writers.read_json(place / "result.json")
        writers.write_json(place / "result.json", {**result, **keys})
    runs, left_out = comparison(tmp_path)
    assert list(runs) == ["ditto", "fedrep"]  # runs of earlier versions do not record the split
    assert left_out == ["fedper is not shown: its runs have split 'plain' instead of 'by_item'."]


def test_runs_evaluated_at_different_rounds_are_compared_at_common_rounds(tmp_path):
    for name, rounds in (("ditto", (0, 5, 10)), ("local", (0, 2, 4, 6, 8, 10))):
        place = tmp_path / name / "seed_0"
        write_run(place, seed=0, last=0.5, global_last=None)
        # Validation rises to round 5 or 6 and falls again; the test score is the round's number.
        rows = [
            {
                "round": round,
                "personal/test_accuracy_weighted": round / 100,
                "personal/validation_accuracy_weighted": 0.5 - abs(round - 5.4) / 10,
            }
            for round in rounds
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs, notes = comparison(tmp_path, ("ditto", "local"))
    assert [row["round"] for row in runs["ditto"][0].rows] == [0, 10]
    for name in ("ditto", "local"):
        scores = runs[name][0].result["personal_accuracy"]
        assert scores["at_best_validation"] == 0.10 and scores["max_over_rounds"] == 0.10
    assert (
        "evaluated at different rounds" in notes[0]
        and "the 2 rounds that all runs share" in notes[0]
    )
    plots.plot_curves(tmp_path / "curves.png", runs, "A title")


def with_metric(runs):
    """The same runs with an error that is undefined for one of two clients."""
    for seeds in runs.values():
        for run in seeds:
            last = run.result["personal_accuracy"]["last"]
            entry = {"title": "error", "percent": True, "more_is_better": False, "clients": 1}
            entry |= {"personal": {"last": 1 - last}, "global": None}
            run.result["metrics"] = {"ece": entry, "loss": {**entry, "clients": 2}}
            run.result["further_metrics"] = ["ece"]
            for row in run.rows:
                row["personal/test_ece_weighted"] = 1 - last
    return runs


def test_further_metrics_are_columns_without_the_mark(runs, tmp_path):
    """The mark of methods near the best one is of the accuracy, also on a terminal."""
    runs = with_metric(with_examples(runs, 20))
    by_title = columns(runs)
    assert list(by_title) == [
        *("personalized", "at best validation", "worst decile", "global", "error"),
        *("time per round", "upload", "download"),
    ]
    assert tables.cell(runs["local"], by_title["error"]) == "30.00 ± 0.00"
    console = rich.console.Console(width=100, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(tables.table(runs, "A title"))
    lines = [line.split() for line in console.export_text().splitlines()]
    first, second = ([*line] for line in lines if line[:1] == ["local"])
    assert first[:5] == ["local", "70.00", "±", "0.00", "≈"]
    assert second == ["local", "30.00", "±", "0.00"]
    text = " ".join(tables.notes(runs))
    assert "error is defined for 1 of 2 clients" in text and "error (lower is better):" in text
    assert plots.axis(runs, "ece") == ("error", 100, " (%, lower is better)")


def test_a_metric_that_no_run_has_is_not_drawn(runs):
    drawn = plots.draw_curves(figure.Figure(), with_metric(runs), "A title", "ece")
    assert [line.get_ydata().tolist()[0] for line in drawn.get_lines()] == pytest.approx([19, 30])
    with pytest.raises(UserError, match="No run has the metric 'auc'; known are accuracy, ece"):
        plots.draw_curves(figure.Figure(), runs, "A title", "auc")


def test_curves_of_a_hundred_methods_look_different():
    looks = [(look["color"], look["linestyle"]) for look in plots.looks_of(100)]
    assert len(set(looks)) == 100
