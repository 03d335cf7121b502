"""The examples in the docstrings of pfljax, each with the number it promises."""

import doctest
import importlib
import pkgutil

import pytest

import pfljax

MODULES = [module.name for module in pkgutil.walk_packages(pfljax.__path__, "pfljax.")]


def examples_of(name):
    """The module's docstrings that hold examples, with what these need."""
    module = importlib.import_module(name)
    return module, [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    _, tests = examples_of(name)
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    said = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_examples_are_found():
    with_examples = {name for name in MODULES if examples_of(name)[1]}
    assert {"pfljax.core.params", "pfljax.data", "pfljax.metrics.summary"} <= with_examples
