"""Adapters of many users: three amounts of work for a user's step, and requests that are served.

A user has 100 ratings of texts of 32 tokens, and trains for 50 steps of eight examples with AdamW.
The lines are not the same work. `full` trains LoRA in all layers of a BERT with two layers of width
64 on ids of tokens. `last` trains LoRA in the last layer, on activations of the layers below, which
are frozen and were computed once for each text. `heads` trains a linear head on 256 features.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarking import baselines
from benchmarking.measuring import spread, timed
from pfljax import models
from pfljax.core import tree
from pfljax.data import FederatedDataset, Split, precompute
from pfljax.engine.clients import on_device
from pfljax.models.language import bert_activations
from pfljax.training.run import runtime
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment

TEXTS, LENGTH, VOCABULARY, WIDTH, LAYERS, HEADS = 4096, 32, 4096, 64, 2, 4
FEATURES, CLASSES = 256, 2
RATINGS, STEPS, BATCH, RANK, ALPHA, RATE = 100, 50, 8, 8, 16.0, 1e-3
PEER_USERS = 40
_LORA = {"name": "lora", "rank": RANK, "scale": ALPHA / RANK, "layers": "query|value"}


class Line(NamedTuple):
    """An amount of work for a user's step.

    Attributes:
      about: What is trained on what.
      users: Number of users.
      model: `config.model`.
      adapter: `config.adapter`.
      baseline: The baseline that a user of another library would run.
    """

    about: str
    users: int
    model: dict[str, Any]
    adapter: dict[str, Any]
    baseline: str


LINES = {
    "full": Line(
        "LoRA in all layers, on ids",
        200,
        {"name": "bert", "width": WIDTH, "layers": LAYERS, "heads": HEADS, "positions": LENGTH},
        _LORA,
        "peft",
    ),
    "last": Line(
        "LoRA in the last layer, on activations",
        200,
        {"name": "bert_upper", "first": LAYERS - 1, "layers": LAYERS, "heads": HEADS},
        _LORA,
        "peft",
    ),
    "heads": Line("a head, on features", 1000, {"name": "logistic"}, {}, "torch_heads"),
}


def dataset_of(name: str, users: int) -> FederatedDataset:
    """Returns random ratings of random texts, as ids, activations or features."""
    draw = np.random.default_rng(0)
    vocabulary: Any = ()
    if name == "heads":
        items = draw.normal(size=(TEXTS, FEATURES)).astype(np.float32)
    else:
        items = draw.integers(1, VOCABULARY, (TEXTS, LENGTH)).astype(np.int32)
        items[np.arange(LENGTH) >= draw.integers(8, LENGTH + 1, (TEXTS, 1))] = 0
        vocabulary = (VOCABULARY,)
    sizes = np.full(users, RATINGS, np.int32)
    split = Split((np.arange(users) * RATINGS).astype(np.int32), sizes)
    nothing = Split(0 * sizes, 0 * sizes)
    found = FederatedDataset(
        name="ratings",
        inputs=draw.integers(0, TEXTS, users * RATINGS).astype(np.int32),
        targets=draw.integers(0, CLASSES, users * RATINGS).astype(np.int32),
        train=split,
        validation=nothing,
        test=Split(split.offsets, sizes // 10),
        num_classes=CLASSES,
        items=items,
        vocabulary=vocabulary,
    )
    if name != "last":
        return found
    sizes_of_bert = {key: value for key, value in LINES["full"].model.items() if key != "name"}
    base = models.MODELS["bert"]((LENGTH,), CLASSES, vocabulary=VOCABULARY, **sizes_of_bert)
    lower = functools.partial(
        bert_activations, base.init(jax.random.key(0)), layers=LAYERS - 1, heads=HEADS
    )
    return precompute(found, jax.jit(lower))


def config_of(line: Line, engine: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of a line: every user trains alone, all of them in each round."""
    config = config_lib.default_config()
    config.algorithm = "local"
    config.model = line.model
    config.adapter.update(line.adapter)
    config.batch_size, config.local_steps = BATCH, STEPS
    config.client_optimizer.name = "adamw"
    config.client_optimizer.learning_rate = RATE
    config.client_optimizer.weight_decay = 0.01
    config.engine.update(engine)
    return config


def measure(name: str, users: int, engine: ml_collections.ConfigDict, rounds: int) -> dict:
    """Compiles and times a line.

    Args:
      name: A key of `LINES`.
      users: Number of users; 0 for the line's.
      engine: The keys of `config.engine`.
      rounds: Number of timed trainings of all users.

    Returns:
      The figures, serializable as JSON.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are real
    line = LINES[name]
    users = users or line.users
    built = experiment.build(config_of(line, engine), dataset_of(name, users))
    state = jax.block_until_ready(built.programs.init(built.examples, jax.random.key(0)))
    args = (built.examples, np.int32(rounds + 1), np.int32(1))
    built.programs.run_rounds.compile(state, *args)
    (state, _), _ = timed(built.programs.run_rounds, state, *args)  # the warm-up
    seconds, of_threads = [], []
    for _ in range(rounds):
        busy = time.process_time()
        (state, _), of_call = timed(built.programs.run_rounds, state, *args)
        of_threads.append(time.process_time() - busy)
        seconds.append(of_call)
    stacked = on_device.to_host(state, users).clients
    shapes = jax.eval_shape(built.task.init, jax.random.key(0))
    return {
        "system": "pfljax",
        "about": line.about,
        "users": users,
        "parameters_of_a_user": tree.size(shapes),
        "seconds_of_all_users": spread(seconds),
        "milliseconds_per_user_step": 1e3 * statistics.median(seconds) / (users * STEPS),
        "processor_milliseconds_per_user_step": (
            1e3 * statistics.median(of_threads) / (users * STEPS)
        ),
        "seconds_compile": built.programs.run_rounds.compile_seconds,
        "requests_per_second": _serve(built, stacked, users),
        "peak_host_bytes": runtime.peak_host_bytes(),
    }


def _serve(built: experiment.Experiment, stacked: Any, users: int) -> dict[str, float]:
    """Returns the requests per second of one request a call, and of 256 users' requests a call."""
    bank = jax.tree.map(jnp.asarray, stacked)
    draw = np.random.default_rng(1)
    whose = draw.integers(0, users, 256).astype(np.int32)
    data = built.dataset
    inputs = jnp.asarray(data.items[data.inputs[draw.integers(0, len(data.inputs), 256)]])

    @jax.jit
    def answer(bank, users, inputs):
        def one(user, example):
            own = jax.tree.map(lambda leaf: leaf[user], bank)
            return built.task.predict(own, example[None])[0]

        return jax.vmap(one)(users, inputs)

    def rate(size: int, calls: int) -> float:
        timed(answer, bank, whose[:size], inputs[:size])
        begin = time.perf_counter()
        for call in range(calls):
            rows = slice(call * size % 256, call * size % 256 + size)
            jax.block_until_ready(answer(bank, whose[rows], inputs[rows]))
        return size * calls / (time.perf_counter() - begin)

    return {"one by one": rate(1, 256), "256 in a call": rate(256, 20)}


def run_baseline(name: str, rounds: int, python: str) -> dict:
    """Runs a baseline in all its settings, with 40 users.

    Args:
      name: 'peft' or 'torch_heads'.
      rounds: Number of timed trainings of all users, after one warm-up.
      python: The interpreter.

    Returns:
      The figures of all settings; those of the fastest are at the top level.
    """
    work = {
        "vocabulary": VOCABULARY,
        "length": LENGTH,
        "texts": TEXTS,
        "width": WIDTH,
        "layers": LAYERS,
        "heads": HEADS,
        "features": FEATURES,
        "num_classes": CLASSES,
        "ratings": RATINGS,
        "steps": STEPS,
        "batch_size": BATCH,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": RATE,
        "cohorts": [list(range(PEER_USERS))] * (rounds + 1),
    }
    settings = {}
    for setting in baselines.BASELINES[name].settings:
        answer = baselines.answer(name, {**work, "setting": setting}, python)
        per_step = 1e3 / (PEER_USERS * STEPS)
        settings[setting] = {
            "milliseconds_per_user_step": per_step * statistics.median(answer["seconds"]),
            "processor_milliseconds_per_user_step": (
                per_step * statistics.median(answer["processor_seconds"])
            ),
        }
    best = min(settings, key=lambda setting: settings[setting]["milliseconds_per_user_step"])
    return {
        "system": name,
        "version": answer["version"],
        "setting": best,
        "users": PEER_USERS,
        **settings[best],
        "settings": settings,
    }
