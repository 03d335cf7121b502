"""Cutting models by path, and joining them again."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfljax.core import params

names = st.sampled_from(["body", "head", "kernel", "bias"])
models = st.dictionaries(
    names,
    st.recursive(st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1)),
)


def paths(model, prefix=()):
    if not isinstance(model, dict):
        return {prefix: model}
    return {
        path: leaf
        for name, child in model.items()
        for path, leaf in paths(child, (*prefix, name)).items()
    }


@given(models, st.data())
def test_join_undoes_split(model, data):
    everything = paths(model)
    chosen = data.draw(st.sets(st.sampled_from(sorted(everything)))) if everything else set()
    selected, others = params.split_params(model, lambda path: path in chosen)
    assert paths(selected) == {path: everything[path] for path in chosen}
    assert paths(others) == {p: leaf for p, leaf in everything.items() if p not in chosen}
    assert params.join_params(selected, others) == model
    assert params.join_params(others, selected) == model


def test_nothing_and_everything():
    model = {"body": {"w": 1}, "head": {"w": 2}}
    assert params.split_params(model, lambda path: False) == ({}, model)
    assert params.split_params(model, lambda path: True) == (model, {})


def test_the_whole_path_is_seen():
    seen = []
    params.split_params({"a": {"b": {"c": 1}}, "d": 2}, lambda path: seen.append(path) or True)
    assert seen == [("a", "b", "c"), ("d",)]


def test_parts_that_overlap_are_refused():
    with pytest.raises(ValueError, match="Both parts contain 'w'"):
        params.join_params({"a": {"w": 1}}, {"a": {"w": 2}})
    with pytest.raises(ValueError, match="Both parts contain 'a'"):
        params.join_params({"a": 1}, {"a": {"w": 2}})


@given(models, st.data())
def test_replacing_a_part_keeps_all_else(model, data):
    everything = paths(model)
    chosen = data.draw(st.sets(st.sampled_from(sorted(everything)))) if everything else set()
    part, _ = params.split_params(model, lambda path: path in chosen)
    raised = jax.tree.map(lambda leaf: leaf + 1, part)
    replaced = params.replace_params(model, raised)
    assert paths(replaced) == {p: leaf + (p in chosen) for p, leaf in everything.items()}
    assert paths(model) == everything


def test_a_missing_array_cannot_be_replaced():
    with pytest.raises(ValueError, match="no 'mean'"):
        params.replace_params({"body": {"w": 1}}, {"body": {"mean": 2}})


def test_the_parts_given_stay_as_they_are():
    body, head = {"x": {"w": 1}}, {"x": {"b": 2}}
    params.join_params(body, head)
    assert (body, head) == ({"x": {"w": 1}}, {"x": {"b": 2}})


def test_zero_params():
    model = {"body": {"w": 1.0, "mean": 2.0}, "head": {"w": 3.0}}
    zeroed = params.zero_params(model, lambda path: path[-1] == "mean")
    assert jax.tree.map(float, zeroed) == {"body": {"w": 1.0, "mean": 0.0}, "head": {"w": 3.0}}
