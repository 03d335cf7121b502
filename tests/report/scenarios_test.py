"""The table of several scenarios, from results in memory."""

import rich.console

from pfljax import metrics
from pfljax.report import scenarios
from pfljax.report.comparison import Report
from pfljax.report.finished import Run


def runs(score="accuracy", **last):
    """Returns one run of each method; None for one that diverged."""

    def result(value):
        if value is None:
            return {"diverged": {"reason": "The loss is not finite."}, "score_name": score}
        return {
            "score_name": score,
            "more_is_better": score == "accuracy",
            metrics.result_key("personal", score): {"last": value, "worst_decile": value / 2},
            "seconds_per_round": 0.5,
            "upload_bytes": 1000,
            "download_bytes": 2000,
        }

    return {name: [Run(result(value), [], {})] for name, value in last.items()}


def scenario(found, *notes):
    return Report(found, "digits, 4 clients", rich.console.Group(), list(notes), [], [])


def test_methods_are_sorted_by_their_mean_score_with_their_mean_ranks():
    found = {
        "dirichlet": scenario(runs(a=0.6, b=0.9, c=0.5, d=None)),
        "shards": scenario(runs(a=0.8, b=0.6, c=0.6, d=0.9)),
    }
    # b is 1st and (with c) 3rd and 4th; d diverged in one scenario.
    assert list(scenarios.order(found).items()) == [("b", 2.25), ("a", 2), ("c", 3.25), ("d", 2.5)]


def test_a_smaller_error_is_better():
    found = {"all": scenario(runs("mse", a=3.0, b=1.0, c=None))}
    assert scenarios.order(found) == {"b": 1, "a": 2, "c": 3}


def test_the_table_has_the_scores_of_each_scenario_and_the_costs_once(tmp_path):
    found = {
        "dirichlet": scenario(runs(a=0.6, b=0.9), "shared note", "note of one"),
        "shards": scenario(runs(a=0.8, b=0.6, other=0.5), "shared note"),
    }
    scenarios.write(tmp_path / scenarios.NAME, found)
    lines = (tmp_path / scenarios.NAME).read_text().splitlines()
    assert lines[2] == (
        "| method | mean rank | dirichlet: personalized (%) | dirichlet: worst decile (%) "
        "| shards: personalized (%) | shards: worst decile (%) | time per round (ms) "
        "| upload (kB) | download (kB) |"
    )
    # A method that only one scenario has is left out.
    assert lines[4:6] == [
        "| b | 1.5 | 90.00 | 45.00 | 60.00 | 30.00 | 500 | 1 | 2 |",
        "| a | 1.5 | 60.00 | 30.00 | 80.00 | 40.00 | 500 | 1 | 2 |",
    ]
    assert lines.count("shared note") == 1
    assert "dirichlet: digits, 4 clients. note of one" in lines
    console = rich.console.Console(width=120, record=True)
    console.print(scenarios.table(found))
    assert "90.00" in console.export_text()
