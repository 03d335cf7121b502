"""Adapters of GPT-2, BERT and T5: outputs equal to peft's, and its files read and written."""

import functools
import importlib.util
import json
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.errors import UserError
from pfljax.models import MODELS, language, params_file
from pfljax.models.adapters import peft

FILES = pathlib.Path(__file__).parents[2] / "third_party" / "peft_adapters"
CASES = sorted(path.name for path in FILES.iterdir() if path.is_dir())
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
PADDED = np.array([[3, 1, 4, 0, 0], [9, 2, 6, 5, 3]])
TARGETS = np.array([[0, 7, 8], [0, 2, 10]])
SIZES = {"width": 8, "layers": 2, "heads": 2}
TEXTS = {"source": (5,), "target": (3,)}
INPUTS = {"gpt2": IDS, "bert": PADDED, "t5": {"source": PADDED, "target": TARGETS}}


def drawn(name, shape):
    """The same draw as in the script that has made the files."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    return (0.5 * draw.standard_normal(shape)).astype(np.float32)


@functools.cache
def network(name, prefix_tokens=None):
    if name == "gpt2":
        settings = {"positions": 12, "prefix_tokens": prefix_tokens}
        return MODELS["gpt2"]((5,), 11, vocabulary=11, **SIZES, **settings)
    if name == "bert":
        return MODELS["bert"]((5,), 3, vocabulary=11, positions=12, **SIZES)
    return MODELS["t5"](TEXTS, 11, vocabulary=dict.fromkeys(TEXTS, 11), **SIZES)


@functools.cache
def base(name):
    """The params of a network, drawn by the names of their arrays in the other library."""
    model, form = network(name), language.FORMATS[name]
    arrays = {}
    for path, leaf in flatten_dict(jax.eval_shape(model.init, jax.random.key(0))).items():
        like = form.convert(path, np.zeros(leaf.shape))
        arrays[form.array(path)] = drawn(form.array(path), like.shape)
    return language.import_params(model, form, arrays)


def of_case(case):
    name = case.split("_")[0]
    model = network(name, 3 if case == "gpt2_prefix" else None)
    return name, model, language.FORMATS[name]


def outputs(model, params, name):
    inputs = jax.tree.map(jnp.asarray, INPUTS[name])
    return jax.jit(lambda params: model.head(params, model.features(params, inputs)))(params)


def kind_of(case):
    return case.split("_", 1)[1]


@functools.cache
def expected():
    with np.load(FILES / "outputs.npz") as file:
        return dict(file)


def with_adapter(case, directory=FILES):
    """The model of a case, and its params with the head of the files, if they have one."""
    name, model, form = of_case(case)
    read = peft.load(directory / case, model, form)
    kept = split_params(base(name), lambda path: path not in flatten_dict(read.params))[0]
    return read, join_params(kept, read.params)


@pytest.mark.parametrize("name", INPUTS)
def test_networks_have_the_outputs_of_transformers(name):
    case = next(case for case in CASES if case.startswith(name))
    found = outputs(network(name), base(name), name)
    np.testing.assert_allclose(found, expected()[f"{case}/base"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_adapters_have_the_outputs_of_peft(case):
    read, params = with_adapter(case)
    name = case.split("_")[0]
    found = outputs(read.model, params, name)
    np.testing.assert_allclose(found, expected()[f"{case}/adapted"], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(found - expected()[f"{case}/base"])) > 0.01


@pytest.mark.parametrize("case", [case for case in CASES if "p_tuning" not in case])
def test_a_file_that_is_written_again_is_the_same(case, tmp_path):
    name, model, form = of_case(case)
    read = peft.load(FILES / case, model, form)
    settings = json.loads((FILES / case / peft.CONFIG).read_text())
    rank = settings.get("r", 1)
    scale = settings.get("lora_alpha", 0) / (rank**0.5 if settings.get("use_rslora") else rank)
    kind = settings["task_type"]
    peft.save(tmp_path / case, read.params, model, form, scale=scale, task_type=kind)
    again = safetensors.numpy.load_file(tmp_path / case / peft.ARRAYS)
    first = safetensors.numpy.load_file(FILES / case / peft.ARRAYS)
    assert again.keys() == first.keys()
    jax.tree.map(np.testing.assert_array_equal, again, first)
    written = json.loads((tmp_path / case / peft.CONFIG).read_text())
    same = {"peft_type", "task_type", "r", "num_virtual_tokens", "token_dim"} & settings.keys()
    assert {key: written[key] for key in same} == {key: settings[key] for key in same}
    second = peft.load(tmp_path / case, model, form)
    jax.tree.map(np.testing.assert_array_equal, second.params, read.params)
    if kind_of(case) != "lora":  # the only one with a setting, its scale, that its arrays lack
        return
    np.testing.assert_allclose(
        outputs(second.model, with_adapter(case, tmp_path)[1], name),
        expected()[f"{case}/adapted"],
        rtol=1e-5,
        atol=1e-5,
    )


def damaged(tmp_path, case="gpt2_lora", arrays=None, **settings):
    """A copy of the files of a case, with other settings or arrays."""
    shutil.copytree(FILES / case, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / peft.CONFIG).read_text()) | settings
    (tmp_path / peft.CONFIG).write_text(json.dumps(content))
    if arrays is not None:
        found = safetensors.numpy.load_file(tmp_path / peft.ARRAYS)
        safetensors.numpy.save_file(arrays(found), tmp_path / peft.ARRAYS)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "of the kind 'VERA'; those that can be read are LORA"),
        ({"use_dora": True}, "has use_dora True, which is not supported"),
        ({"rank_pattern": {"c_attn": 3}}, "has rank_pattern"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"r": 3}, "h.0/attn/c_attn/lora_a the shape .* of another network"),
        ({"r": 0}, "no complete adapter of the kind LORA"),
        ({"r": None}, "no complete adapter of the kind LORA"),
        ({"arrays": lambda a: dict(list(a.items())[1:])}, "lora_. the shape None"),
        ({"arrays": lambda a: {k: 0 * v + np.nan for k, v in a.items()}}, "not finite"),
        (
            {"arrays": lambda a: {k.replace("h.1", "h.7"): v for k, v in a.items()}},
            "the network has no layer for 'transformer.h.7.attn.c_attn.lora_A.weight'",
        ),
        ({"case": "bert_lora"}, "the network has no layer for 'bert.encoder"),
        ({"case": "gpt2_prompt", "num_virtual_tokens": 7}, "3 rows for 7 tokens"),
        (
            {"case": "gpt2_prompt", "arrays": lambda a: {"other": a["prompt_embeddings"]}},
            "prompt_em",
        ),
    ],
)
def test_bad_files(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        peft.load(damaged(tmp_path, **changes), network("gpt2"), language.FORMATS["gpt2"])


def test_files_that_cannot_be_read(tmp_path):
    form = language.FORMATS["gpt2"]
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        peft.load(tmp_path / "nothing", network("gpt2"), form)
    path = damaged(tmp_path)
    (path / peft.ARRAYS).write_bytes(b"damaged")
    with pytest.raises(UserError, match="adapter_model.safetensors cannot be read"):
        peft.load(path, network("gpt2"), form)
    (path / peft.CONFIG).write_text("[]")
    with pytest.raises(UserError, match="no config of an adapter"):
        peft.load(path, network("gpt2"), form)
    with pytest.raises(UserError, match="arrays bias_change are of no kind"):
        wrong = {"body": {"h.0": {"bias_change": np.zeros(3)}}}
        peft.save(tmp_path, wrong, network("gpt2"), form)


def test_weights_of_another_size():
    form = language.FORMATS["gpt2"]
    with pytest.raises(UserError, match="have no 'transformer"):
        language.import_params(network("gpt2"), form, {})
    arrays = {form.array(path): np.zeros(1) for path in flatten_dict(base("gpt2"))}
    with pytest.raises(UserError, match="gives the shape"):
        language.import_params(network("gpt2"), form, arrays)


def test_imported_weights_are_a_base_in_a_file(tmp_path):
    params_file.save(tmp_path / "base.safetensors", base("bert"))
    again = params_file.load(tmp_path / "base.safetensors", base("bert"))
    jax.tree.map(np.testing.assert_array_equal, again, base("bert"))


def test_distances_beyond_the_largest_share_a_bucket():
    both, causal = (language.distance_buckets(300, 300, c) for c in (False, True))
    assert both[0, 0] == causal[0, 0] == 0 and np.all(causal[0] == 0)
    assert both.min() == 0 and both.max() == 31 and causal.max() == 31
    assert np.all(both[0, 128:] == 31) and np.all(both[128:, 0] == 15)
    assert np.all(np.diff(causal[:, 0]) >= 0)
    np.testing.assert_array_equal(causal[:16, 0], range(16))


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_those_of_peft_today(case):
    """With the extra `peft` only: the outputs of the installed versions."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("make", FILES / "make.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    for name, array in made.make(case)[1].items():
        np.testing.assert_allclose(array, expected()[f"{case}/{name}"], rtol=1e-5, atol=1e-5)


def test_golden_files_are_small():
    assert sum(path.stat().st_size for path in FILES.rglob("*") if path.is_file()) < 60_000
    assert tree.num_bytes(expected()) < 30_000
