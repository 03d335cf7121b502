"""The notebook's cells run from top to bottom."""

import json
import pathlib

from pfljax.algorithms import ALGORITHMS

NOTEBOOK = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks" / "quickstart.ipynb"


def test_the_notebook_runs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    scope = {}
    try:
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), scope)
    finally:
        ALGORITHMS.pop("fedhalf", None)
    scores = {
        name: run[0].result["personal_accuracy"]["last"] for name, run in scope["runs"].items()
    }
    assert scores["fedrep"] > scores["fedavg"]
    assert scope["result"]["hyperparameters"] == {"fraction": 0.5}
    assert scope["result"]["global_accuracy"]["last"] > 0.3
    assert (scope["workdir"] / "curves.png").stat().st_size > 10_000
