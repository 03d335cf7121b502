"""Runs with an aggregation: resumption, populations on the host, several values in one program."""

import jax
import numpy as np
import pytest
from runs import assert_same_run, config, interrupt_at

from pfljax.algorithms import ALGORITHMS
from pfljax.engine.programs import build_rounds
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, loop, writers
from pfljax.training.study import aggregation, experiment, vectorized
from pfljax.training.study.task import build_task

# A state at clients and at the server, and randomness on both sides.
SETTINGS = {
    "aggregation.stages": ("top_k", "quantize", "adaptive_clip"),
    "aggregation.top_k.fraction": 0.2,
    "aggregation.adaptive_clip.bound": 0.5,
    "aggregation.adaptive_clip.noise_multiplier": 0.01,
    "aggregation.adaptive_clip.count_noise": 0.1,
}


@pytest.fixture(scope="module")
def built():
    return experiment.build(config(**SETTINGS))


@pytest.fixture(scope="module")
def straight(built, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    return directory, loop.run(built, directory), None


@pytest.mark.parametrize("last", [2, 4])
def test_an_interruption_leaves_no_trace(straight, built, tmp_path, last):
    with pytest.raises(KeyboardInterrupt):
        loop.run(built, tmp_path, progress=interrupt_at(last))
    assert_same_run(tmp_path, loop.run(built, tmp_path, resume=True), straight)


def test_the_checkpoint_holds_bound_and_memory_and_goes_to_other_devices(straight, built):
    directory, _, _ = straight
    one = experiment.build(config(**SETTINGS, **{"engine.devices": 1}))
    saved = []
    for used in (built, one):
        checkpoints = checkpoint.Checkpoints(directory / "checkpoints")
        like = used.programs.init(used.examples, jax.random.key(5))
        (restored,) = checkpoints.restore(like, 5, used.devices)
        checkpoints.close()
        saved.append(used.store.to_host(restored.state, 5))
    jax.tree.map(np.testing.assert_array_equal, *saved)
    assert saved[0].server.aggregation != 0.5  # the bound moved
    memory = np.concatenate(
        [leaf.reshape(5, -1) for leaf in jax.tree.leaves(saved[0].clients.aggregation)], 1
    )
    assert np.all(np.any(memory != 0, axis=1)[:4]) and not np.any(memory[4])  # client 4 is unseen


def test_what_a_result_says(straight):
    directory, result, _ = straight
    assert list(result["aggregation"]) == list(SETTINGS["aggregation.stages"])
    assert result["aggregation"]["top_k"] == {"fraction": 0.2}
    # A fifth of the model's numbers with 8 bits, a bit for each, four scales, the weight, a term.
    numbers = 64 * 8 + 8 + 8 * 10 + 10
    expected = (np.ceil(0.2 * numbers) * 8 + numbers + 32 * (4 + 1 + 1)) / 8
    assert result["upload_bytes"] == pytest.approx(expected, rel=0.01)
    rows = writers.read_rows(directory / "metrics.jsonl")
    assert rows[-1]["train/upload_bytes"] == pytest.approx(expected, rel=0.01)
    assert result["compilations_after_first_round"] == 0


def test_a_population_on_the_host_has_the_same_numbers(straight, tmp_path):
    directory, _, _ = straight
    host = experiment.build(config(**SETTINGS, **{"engine.residence": "host"}))
    loop.run(host, tmp_path)
    for one, other in zip(
        *(writers.read_rows(at / "metrics.jsonl") for at in (directory, tmp_path)), strict=True
    ):
        assert one.pop("train/slots", 0) >= 0 and other.pop("train/slots", 0) >= 0
        assert one == pytest.approx(other, rel=1e-4, nan_ok=True)


def test_bounds_of_several_runs_share_a_program(straight, tmp_path):
    bounds = (0.5, 0.05)
    configs = [config(**SETTINGS | {"aggregation.adaptive_clip.bound": bound}) for bound in bounds]
    together = vectorized.build(configs)
    places = [tmp_path / str(bound) for bound in bounds]
    results = loop.run_vectorized(together, configs, places)
    rows = [writers.read_rows(place / "metrics.jsonl") for place in (*places, straight[0])]
    for ours, theirs in zip(rows[0], rows[2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6, nan_ok=True)
    assert rows[0][-1] != rows[1][-1]
    assert results[0]["compilations"] == 1
    other = config(**SETTINGS | {"aggregation.stages": ("top_k", "quantize")})
    with pytest.raises(
        UserError, match="config.aggregation.stages cannot differ between vectorized runs"
    ):
        vectorized.build([configs[0], other])


def test_the_plain_mean_compiles_to_the_methods_own_round():
    made = config()
    built = experiment.build(made)
    make, frozen = build_task(made, built.dataset)
    task = make(frozen)
    local = experiment.build_local_training(made, task, built.examples.max_train_size)
    arguments = dict(made.hparams.ditto)
    own = build_rounds(
        ALGORITHMS["ditto"](task, local, **arguments),
        built.plan,
        clients_per_chunk=2,
        rounds_per_call=2,
        devices=built.devices,
    )
    state = built.programs.init(built.examples, jax.random.key(0))
    numbers = (np.int32(6), np.int32(2))
    text, expected = (
        program.lower(state, built.examples, *numbers).as_text()
        for program in (built.programs.run_rounds, own)
    )
    assert text == expected
    other = experiment.build(config(**{"aggregation.stages": ("quantize",)}))
    assert other.programs.run_rounds.lower(state, built.examples, *numbers).as_text() != text


def test_metrics_of_clients_are_public_or_none(tmp_path):
    silent = config(**SETTINGS, **{"aggregation.metrics": "none", "rounds": 2, "eval_every": 2})
    loop.run(experiment.build(silent), tmp_path)
    row = writers.read_rows(tmp_path / "metrics.jsonl")[-1]
    assert not any(name.startswith("train/") and "loss" in name for name in row)
    assert row["train/cohort"] == 3 and row["train/upload_bytes"] > 0


REFUSALS = {
    "no such aggregator": (
        {"aggregation.stages": ("topk",)},
        "Unknown .*'topk'.*Did you mean 'top_k'",
    ),
    "a word": ({"aggregation.stages": "clip"}, r"must be a tuple of names, such as \('clip',\)"),
    "order": ({"aggregation.stages": ("clip", "top_k")}, "'top_k' .* cannot follow 'clip'"),
    "twice": ({"aggregation.stages": ("clip", "clip")}, "'clip' .* cannot follow 'clip'"),
    "range": (
        {"aggregation.quantize.bits": 1},
        "config.aggregation.quantize.bits is 1; it must be",
    ),
    "metrics": ({"aggregation.metrics": "secret"}, "Unknown aggregation.metrics 'secret'"),
    "no noise on the count": (
        {
            "aggregation.stages": ("adaptive_clip",),
            "aggregation.adaptive_clip.noise_multiplier": 1.0,
        },
        "adaptive_clip.count_noise is 0.0; .* it must be above 0.5",
    ),
    "part of the method": (
        {"aggregation.stages": ("top_k",), "algorithm": "fedkd"},
        "'top_k' .* cannot follow 'low_rank', which is part of the method",
    ),
    "means of classes": (
        {"aggregation.stages": ("top_k",), "algorithm": "fedproto"},
        "'top_k' cannot be used with a method that uploads a mean for each class",
    ),
    "exact counts": (
        {"aggregation.stages": ("clip",), "algorithm": "fedproto"},
        "'clip' cannot be used with a method that uploads a mean for each class",
    ),
    "uploads that are seen": (
        {"aggregation.stages": ("clip",), "algorithm": "fedgen"},
        "fedgen shows the server each client's upload, which 'clip' neither clips",
    ),
    **{
        name: (
            {"aggregation.stages": ("median",), "algorithm": name},
            f"{name} uploads nothing that is added up",
        )
        for name in ("local", "fedfomo", "apple", "pfedhn")
    },
}


@pytest.fixture(scope="module")
def dataset(built):
    return built.dataset


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused_in_one_sentence(case, dataset):
    changes, sentence = REFUSALS[case]
    made = config()
    with made.unlocked(), made.ignore_type():
        made.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence) as refusal:
        experiment.build(made, dataset)
    assert "\n" not in str(refusal.value)


def test_check_accepts_every_aggregator_alone():
    for name in aggregation.aggregation.AGGREGATORS:
        aggregation.check(config(**{"aggregation.stages": (name,)}))
