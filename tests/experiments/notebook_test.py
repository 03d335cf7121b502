"""The notebook's cells run from top to bottom, and use public names alone."""

import json
import pathlib

import matplotlib
import numpy as np

import pfljax

NOTEBOOK = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks" / "quickstart.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    scope = {}
    for cell in code_cells():
        exec("".join(cell["source"]), scope)
    best = scope["comparison"].per_run().groupby("algorithm")["personal_accuracy.last"].mean()
    assert best["ditto"] > best["local"] and best["ditto"] > best["fedavg"]
    again = pfljax.load_model("sensor_3.safetensors")
    np.testing.assert_array_equal(again.outputs(scope["new"]), scope["model"].outputs(scope["new"]))
    assert scope["table"].num_clients == 20
    assert scope["half"].result["hyperparameters"] == {"fraction": 0.5}


def test_data_to_plot_takes_ten_lines():
    first, second = code_cells()[:2]
    lines = [line for line in [*first["source"], *second["source"]] if line.strip()]
    assert len(lines) <= 10
