"""The bytes until a validation score, on rows of known runs."""

import importlib.util
import pathlib

from pfljax.report import finished

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "bytes_to_score.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("bytes_to_score", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load()


def run_of(validation, score="accuracy", more=True):
    rows = [
        {
            "round": 2 * number,
            f"personal/validation_{score}_weighted": value,
            f"personal/validation_{score}_unweighted": 0.5,
            f"personal/test_{score}_weighted": number / 10,
        }
        for number, value in enumerate(validation)
    ]
    result = {"score_name": score, "more_is_better": more, "upload_bytes": 5, "download_bytes": 7}
    return finished.Run(result, rows, {})


def test_the_first_round_that_reaches_the_target_counts():
    run = run_of([0.1, None, 0.7, 0.6, 0.9])
    assert script.reach(run, 0.7, "weighted") == (4, 20, 28, 0.2)
    assert script.reach(run, 0.8, "weighted") == (8, 40, 56, 0.4)
    assert script.reach(run, 0.8, "unweighted") is None
    assert script.reach(run._replace(result={"diverged": 3}), 0.0, "weighted") is None


def test_less_may_be_better():
    run = run_of([3.0, 2.0, 1.0], "mse", more=False)
    assert script.reach(run, 2.0, "weighted") == (2, 10, 14, 0.1)


def test_a_line_is_the_mean_over_the_seeds_that_reach_it():
    runs = [run_of([0.1, 0.8]), run_of([0.1, 0.2, 0.8]), run_of([0.1])]
    runs = [run._replace(result=run.result | {"upload_bytes": 10**6}) for run in runs]
    assert script.line(["a", "b"], runs, 0.8, "weighted") == (
        "| a | b | 2 of 3 | 3.0 | 3 | 2.1e-05 | 15.00 % |"
    )
    assert script.line(["a", "b"], runs, 0.9, "weighted") == "| a | b | 0 of 3 | - | - | - | - |"
