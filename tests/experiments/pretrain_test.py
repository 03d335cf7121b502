"""The server's examples as those of one client, which training starts from."""

import importlib.util
import pathlib

import numpy as np
import pytest

from pfljax.data import load
from pfljax.errors import UserError

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "pretrain.py"


def load_script():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("pretrain", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def test_one_client_has_the_examples_of_the_server_and_no_other():
    dataset = load("digits", num_clients=5, unseen_fraction=0.2, server_fraction=0.3)
    public = script.of_server(dataset, seed=1)
    assert (public.num_clients, public.num_unseen, public.server) == (1, 0, None)
    size = len(dataset.server.targets)
    assert public.train.sizes.tolist() == [size - size // 10]
    assert public.test.sizes.tolist() == [size // 10]
    assert public.test.offsets.tolist() == public.train.sizes.tolist()

    def rows(inputs, targets):
        flat = np.asarray(inputs).reshape(size, -1)
        return sorted(map(tuple, np.column_stack([flat, targets]).tolist()))

    server = dataset.server
    assert rows(public.inputs, public.targets) == rows(server.inputs, server.targets)
    assert (public.mean, public.std) == (dataset.mean, dataset.std)
    assert public.targets.tolist() != server.targets.tolist()  # the order is drawn


def test_a_server_without_examples_is_refused():
    with pytest.raises(UserError, match="server_fraction"):
        script.of_server(load("digits", num_clients=5), seed=0)
