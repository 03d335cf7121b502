"""PFLlib's own trajectories, in float64, where its code is the method or a keyword away from it.

The folders are taken from the environment variable `PFLJAX_TRAJECTORIES`, separated as in `PATH`;
without it, the distilled files in `third_party/pfllib_trajectories` are used. Data, initial weights
and hyper-parameters are read from the files, so that any other set in the same format is accepted.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import os
import pathlib
from typing import NamedTuple

import federation
import jax
import numpy as np
import optax
import pytest
import trajectories

from pfljax import aggregation, core, models, tasks
from pfljax.aggregation.low_rank import compress
from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.apple import annealing
from pfljax.algorithms.fedpac import head_weights
from pfljax.core import streams
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init, build_rounds
from pfljax.ops import distillation, stacked
from pfljax.ops.prototypes import Prototypes

DISTILLED = pathlib.Path(__file__).parents[2] / "third_party" / "pfllib_trajectories"
NAMED = os.environ.get("PFLJAX_TRAJECTORIES")
FOLDERS = [pathlib.Path(name) for name in NAMED.split(os.pathsep)] if NAMED else [DISTILLED]
TOLERANCE = 1e-8


class Case(NamedTuple):
    """How a method stands in PFLlib's files.

    Attributes:
      file: name without ending.
      hyperparameters: `(PFLlib's) -> ours`.
      server: `(our server state) -> {name of PFLlib's: tree}`.
      client: `(our client states) -> {name of PFLlib's: tree}`, leaves `[num_clients, ...]`.
      global_logits: the key of the global model's test logits, where PFLlib records them.
      local: `(our local training) -> local training`, where PFLlib's batches differ.
      task: `(our task) -> task`, where PFLlib's losses differ.
      personal: `(our client's outputs, our server state) -> PFLlib's test_logits`; None where it
        deploys another model than we do.
      first_round: `(our client states after it, initial model) -> what PFLlib has then`.
      start: `(our state, PFLlib's file) -> state`, which puts in what PFLlib drew at random.
      tape: `(PFLlib's file, PFLlib's hyper-parameters) -> {name: function}`, functions of the
        method's module in place of ours: they return the draws of PFLlib, or what it computes
        otherwise.
      counts: the key of PFLlib's class counts of a client; None for those of all its examples.
      initial_rounds: number of our rounds before PFLlib's first one, which does their work earlier.
    """

    file: str
    hyperparameters: object = lambda theirs: {}
    server: object = lambda server: {"global": server.params}
    client: object = lambda clients: {}
    global_logits: str | None = "test_logits"
    local: object = lambda local: local
    task: object = lambda task: task
    personal: object = lambda outputs, server: outputs
    first_round: object = lambda clients, initial: clients
    start: object = lambda state, theirs: state
    tape: object = None
    counts: str | None = None
    initial_rounds: int = 0


def like(leaf, array):
    """The same array for every client, or on every device, laid out as `leaf` is."""
    return jax.device_put(np.broadcast_to(array, leaf.shape), leaf.sharding)


def step_keys(round, client, steps):
    """The keys of a client's training steps in a round, where it trains by its context's key."""
    key = streams.key_of(jax.random.key(0), streams.UPDATE, round, client)
    return [streams.key_of(key, streams.STEP, step) for step in range(steps)]


def lookup(keys, *columns):
    """Returns `key -> rows`, one of each column, for a key among `keys`, also in a program."""
    table = np.stack([np.asarray(jax.random.key_data(key)) for key in keys])

    def rows(key):
        row = jax.numpy.argmax(jax.numpy.all(table == jax.random.key_data(key), axis=-1))
        return [jax.numpy.asarray(column)[row] for column in columns]

    return rows


def fedgen_tape(theirs, settings):
    """Labels and noise of every step of clients and server."""
    keys, labels, noise = [], [], []
    size, steps = settings["batch_size"], settings["server_epochs"]
    for round in range(settings["loop_iterations"]):
        names = [f"client{i}/tape/train" for i in range(settings["num_clients"])]
        for client, name in enumerate([*names, "server/tape/server"]):
            drawn = {kind: theirs[f"round{round}/{name}/{kind}"] for kind in ("labels", "uniform")}
            labels.append(drawn["labels"].reshape(-1, size))
            noise.append(drawn["uniform"].reshape(-1, size, settings["noise_dim"]))
            if client < len(names):
                keys += [jax.random.split(k)[1] for k in step_keys(round, client, len(labels[-1]))]
            else:
                server = streams.key_of(jax.random.key(0), streams.SERVER, round)
                keys += list(jax.random.split(server, steps))
    rows = lookup(keys, np.concatenate(labels), np.concatenate(noise))
    return {"draw": lambda key, *sizes: rows(key)}


def fedkd_energies(settings):
    """PFLlib begins with `T_start` itself, and runs one round more to reach `T_end`."""
    step = (settings["T_end"] - settings["T_start"]) / settings["global_rounds"]
    return {"energy_start": settings["T_start"] - step, "energy_end": settings["T_end"] - step}


# PFLlib's names for the arrays of the generator; its first bias has no effect.
GENERATOR = {
    "hidden": "fc1/0/kernel",
    "norm": {"scale": "fc1/1/scale", "bias": "fc1/1/bias"},
    "features": {"kernel": "fc/kernel", "bias": "fc/bias"},
}


def fedgen_start(state, theirs):
    def put(leaf, name):
        return like(leaf, theirs[f"init/server/generative_model/{name}"])

    generator = jax.tree.map(put, state.server.generator, GENERATOR)
    return state._replace(server=state.server._replace(generator=generator))


def fedcross_tape(theirs, settings):
    """Models in stored order, and a similarity that is a sum over layers, the last one twice."""

    def cosines(models):
        layers = [stacked.cosines(part) for part in (models["body"], models["head"])]
        return layers[0] + 2 * layers[1]

    return {
        "assign": lambda key, models: jax.numpy.arange(models),
        "cosines": cosines,
    }


def fedlc_start(state, theirs):
    """The examples of full batches of each class, which PFLlib has of all clients together."""
    last, settings = theirs["round3/client0/calibration"], settings_of(theirs)
    counts = np.rint((settings["tau"] / last[0]) ** 4)
    return state._replace(
        server=state.server._replace(class_counts=like(state.server.class_counts, counts))
    )


def mean_divergence(target, logits, mask):
    """The divergence as PFLlib has it in FML: a mean over classes too."""
    return distillation.divergence(target, logits, mask) / logits.shape[1]


# PFLlib's names for the arrays of GPFL's conditional valve.
VALVE = {
    part: {
        "linear": {kind: f"Conditional_{part}/0/{kind}" for kind in ("kernel", "bias")},
        "norm": {kind: f"Conditional_{part}/2/{kind}" for kind in ("scale", "bias")},
    }
    for part in ("gamma", "beta")
}


def gpfl_start(state, theirs):
    average = state.server.average
    first = {
        "embedding": "init/client0/GCE/embedding/embedding",
        "valve": jax.tree.map(lambda name: f"init/client0/CoV/{name}", VALVE),
    }
    drawn = {name: average.params[name] for name in first}
    put = jax.tree.map(lambda leaf, name: like(leaf, theirs[name]), drawn, first)
    average = average._replace(params={**average.params, **put})
    return state._replace(server=state.server._replace(average=average))


CASES = {
    "fedavg": Case("FedAvg"),
    "local": Case(
        "Local",
        server=lambda server: {},
        client=lambda clients: {"model": clients},
        global_logits=None,
    ),
    "fedprox": Case("FedProx", hyperparameters=lambda theirs: {"mu": theirs["mu"]}),
    "scaffold": Case(
        "SCAFFOLD",
        hyperparameters=lambda theirs: {
            "server_optimizer": optax.sgd(theirs["server_learning_rate"])
        },
        server=lambda server: {"global": server.average.params, "server/global_c": server.control},
        client=lambda clients: {"client_c": clients},
    ),
    "ditto": Case(
        "Ditto",
        hyperparameters=lambda theirs: {
            "lam": theirs["mu"],
            "personal_epochs": theirs["plocal_epochs"],
        },
        client=lambda clients: {"model_per": clients},
        global_logits="test_logits_global",
    ),
    "apfl": Case(  # the common model; PFLlib trains and mixes the own one otherwise
        "APFL",
        hyperparameters=lambda theirs: {"weight_by_size": True},
        personal=None,
        global_logits=None,
    ),
    "fedper": Case(
        "FedPer", server=lambda server: {"global": server.average.params}, global_logits=None
    ),
    "fedrep": Case(
        "FedRep",
        hyperparameters=lambda theirs: {"head_epochs": theirs["plocal_epochs"]},
        server=lambda server: {"global": server.average.params},
        client=lambda clients: {"model": clients},
        global_logits=None,
    ),
    "fedbabu": Case(  # PFLlib fine-tunes after the last round only
        "FedBABU",
        hyperparameters=lambda theirs: {"fine_tuning_epochs": 0},
        server=lambda server: {"global": server.average.params},
    ),
    "perfedavg": Case(  # PFLlib's batches are of two halves, and its epochs run twice
        "PerAvg",
        hyperparameters=lambda theirs: {
            "alpha": theirs["local_learning_rate"],
            "weight_by_size": True,
        },
        global_logits=None,
        local=lambda local: local._replace(
            batch_size=2 * local.batch_size, epochs=2 * local.epochs
        ),
    ),
    "pfedme": Case(  # PFLlib evaluates the global model in place of the personal ones
        "pFedMe",
        hyperparameters=lambda theirs: {
            "lam": theirs["lamda"],
            "inner_steps": theirs["K"],
            "inner_rate": theirs["p_learning_rate"],
            "beta": theirs["beta"],
            "weight_decay": 0.001,
            "weight_by_size": True,
        },
        personal=None,
    ),
    "fedproto": Case(  # PFLlib's scores are distances, divided by the number of features
        "FedProto",
        hyperparameters=lambda theirs: {
            "lam": theirs["lamda"],
            "prototypes_in_training": True,
            "weight_by_size": False,
        },
        server=lambda server: {"server/global_protos": server.prototypes.means},
        client=lambda clients: {"model": clients},
        global_logits=None,
        personal=lambda outputs, server: -outputs / server.prototypes.means.shape[1],
    ),
    "fedgen": Case(
        "FedGen",
        hyperparameters=lambda theirs: {
            "weight": 1.0,
            "decay": 1.0,
            "first_round": 0,
            "diversity": 0.0,
            "label_weights": False,
            "generator_steps": theirs["server_epochs"],
            "generator_rate": theirs["generator_learning_rate"],
            "generator_batch": theirs["batch_size"],
            "noise_size": theirs["noise_dim"],
            "hidden_size": theirs["hidden_dim"],
            "uniform_noise": True,
        },
        server=lambda server: {
            "global": server.average.params,
            **{
                f"server/generative_model/{name}": array
                for name, array in zip(
                    jax.tree.leaves(GENERATOR), jax.tree.leaves(server.generator), strict=True
                )
            },
        },
        start=fedgen_start,
        tape=fedgen_tape,
    ),
    "fedkd": Case(  # its divergence is a mean over classes too; our server compresses at once
        "FedKD",
        hyperparameters=lambda theirs: {
            "distillation": 1 / 10,
            **fedkd_energies(theirs),
            "detach": False,
            "compress_models": True,
        },
        server=lambda server: {},
        client=lambda clients: {"model": clients.mentor, "W_h/head/kernel": clients.bridge},
        global_logits=None,
        local=lambda local: local._replace(
            optimizer=optax.chain(optax.clip_by_global_norm(10.0), local.optimizer)
        ),
        start=lambda state, theirs: state._replace(
            clients=state.clients._replace(
                bridge=like(state.clients.bridge, theirs["init/client0/W_h/head/kernel"])
            )
        ),
    ),
    "fedala": Case(  # the weights' examples are the first rows; PFLlib counts tensors, not layers
        "FedALA",
        hyperparameters=lambda theirs: {
            "eta": theirs["eta"],
            "share": theirs["rand_percent"] / 100,
            "layers": theirs["layer_idx"] // 2,
        },
        client=lambda clients: {"model": clients.params, "ala_weights": clients.weights},
        global_logits=None,
    ),
    "fedbn": Case(
        "FedBN",
        server=lambda server: {"global": server.average.params},
        client=lambda clients: {"model": clients},
        global_logits=None,
    ),
    "fedcac": Case(  # PFLlib makes no groups in the first round, and keeps the initial model there
        "FedCAC",
        hyperparameters=lambda theirs: {"tau": theirs["tau"], "beta": theirs["beta"]},
        server=lambda server: {"global": server.average.params},
        client=lambda clients: {
            "customized_model": clients.params,
            "local_mask": jax.tree.map(lambda mask: mask.astype(float), clients.critical),
        },
        global_logits=None,
        first_round=lambda clients, initial: clients._replace(params=initial),
    ),
    "feddyn": Case(
        "FedDyn",
        hyperparameters=lambda theirs: {"alpha": theirs["alpha"], "squared": False},
        server=lambda server: {"global": server.params, "server/server_state": server.drift},
        client=lambda clients: {"old_grad": clients},
    ),
    "feddyn paper": Case(  # computed from the paper's equations
        "FedDyn-paper",
        hyperparameters=lambda theirs: {"alpha": theirs["alpha"]},
        server=lambda server: {"global": server.params, "server/h": server.drift},
        client=lambda clients: {"lambda": clients},
        personal=None,
        global_logits=None,
    ),
    "moon": Case(
        "MOON",
        hyperparameters=lambda theirs: {"mu": theirs["mu"], "tau": theirs["tau"]},
        client=lambda clients: {"old_model": clients},
    ),
    "fedlc": Case(  # PFLlib counts the examples of full batches only
        "FedLC",
        hyperparameters=lambda theirs: {"tau": theirs["tau"], "pooled_counts": True},
        server=lambda server: {"global": server.average.params},
        start=fedlc_start,
    ),
    "fedntd": Case(  # PFLlib multiplies the divergence by the square of the temperature
        "FedNTD",
        hyperparameters=lambda theirs: {
            "beta": theirs["beta"] * theirs["tau"] ** 2,
            "tau": theirs["tau"],
            "weight_by_size": False,
        },
    ),
    "fedamp": Case(  # PFLlib's proximal term has no gradient
        "FedAMP",
        hyperparameters=lambda theirs: {"lam": 0.0},
        server=lambda server: {},
        client=lambda clients: {"model": clients.params},
        global_logits=None,
    ),
    "fedphp": Case(  # PFLlib evaluates the trained model in place of the inherited one
        "FedPHP",
        hyperparameters=lambda theirs: {"mu": theirs["mu"], "lam": theirs["lamda"]},
        client=lambda clients: {"model_p": clients.params},
        personal=None,
        global_logits=None,
    ),
    "fedmtl": Case(  # PFLlib's regularizer has no gradient
        "FedMTL",
        hyperparameters=lambda theirs: {"lam": 0.0, "decay": 0.0},
        server=lambda server: {},
        client=lambda clients: {"model": clients},
        global_logits=None,
    ),
    "pflda": Case(  # PFLlib's proximal term has no gradient
        "PFL-DA",
        hyperparameters=lambda theirs: {"lam": 0.0},
        server=lambda server: {"global": server.average.params},
        client=lambda clients: {"model": {**clients.body, **clients.head}},
        global_logits=None,
    ),
    "fedcross": Case(  # PFLlib evaluates the models that the clients trained
        "FedCross",
        hyperparameters=lambda theirs: {
            "models": theirs["num_clients"],
            "alpha": theirs["fedcross_alpha"],
        },
        server=lambda server: {
            f"server/w_locals/{i}": jax.tree.map(lambda leaf, i=i: leaf[i], server.models)
            for i in range(len(server.assignment))
        },
        personal=None,
        global_logits=None,
        tape=fedcross_tape,
    ),
    "fedfomo": Case(  # PFLlib weighs models by the mean of the batches' losses, not the examples'
        "FedFomo",
        hyperparameters=lambda theirs: {"models": theirs["M"], "exploration": 0.0},
        server=lambda server: {},
        client=lambda clients: {"model": clients.params, "old_model": clients.before},
        global_logits=None,
        task=lambda task: task._replace(
            losses=lambda model, batch, key, train=True: (
                task.losses(model, batch, key, train)
                / jax.numpy.maximum(jax.numpy.sum(batch.mask), 1)
            )
        ),
    ),
    "lg_fedavg": Case(
        "LG-FedAvg",
        server=lambda server: {"global": server.average.params},
        client=lambda clients: {"model": clients},
        global_logits=None,
    ),
    "fedrod": Case(  # PFLlib counts classes without the batch that it drops
        "FedROD",
        server=lambda server: {"global": server.params["model"]},
        client=lambda clients: {"head": clients},
        global_logits=None,
        counts="sample_per_class",
    ),
    "feddbe": Case(  # PFLlib computes the mean when it is set up
        "FedDBE",
        hyperparameters=lambda theirs: {
            "kappa": theirs["kl_weight"],
            "momentum": theirs["momentum"],
        },
        server=lambda server: {"global": server.average.params, "client0/global_mean": server.mean},
        client=lambda clients: {"client_mean": clients},
        global_logits=None,
        initial_rounds=1,
    ),
    "gpfl": Case(
        "GPFL",
        hyperparameters=lambda theirs: {"lam": theirs["lamda"], "mu": theirs["mu"]},
        server=lambda server: {
            "global": server.average.params["model"],
            "server/GCE/embedding/embedding": server.average.params["embedding"],
            **{
                f"server/CoV/{name}": array
                for name, array in zip(
                    jax.tree.leaves(VALVE),
                    jax.tree.leaves(server.average.params["valve"]),
                    strict=True,
                )
            },
        },
        client=lambda clients: {
            "model": clients.head,
            "generic_conditional_input": clients.generic,
            "personalized_conditional_input": clients.personal,
        },
        global_logits=None,
        counts="sample_per_class",
        start=gpfl_start,
    ),
    "fedas": Case(  # its heads are averaged too, but never used
        "FedAS",
        server=lambda server: {"global": server.average.params},
        client=lambda clients: {"model": clients},
        global_logits=None,
    ),
    "fd": Case(
        "FD",
        hyperparameters=lambda theirs: {
            "lam": theirs["lamda"],
            "probabilities": False,
            "exclude_own": False,
        },
        server=lambda server: {
            "server/global_logits": server.total.value / server.total.weight[:, None]
        },
        client=lambda clients: {"model": clients.params},
        global_logits=None,
    ),
    "fml": Case(
        "FML",
        hyperparameters=lambda theirs: {
            "alpha": theirs["alpha"],
            "beta": theirs["beta"],
            "detach": False,
        },
        client=lambda clients: {"model": clients},
        global_logits=None,
        local=lambda local: local._replace(
            optimizer=optax.chain(optax.clip_by_global_norm(10.0), local.optimizer)
        ),
        tape=lambda theirs, settings: {"divergence": mean_divergence},
    ),
}


def read(name):
    paths = [folder / f"{name}.npz" for folder in FOLDERS]
    found = [path for path in paths if path.exists()]
    if not found:
        pytest.skip(f"{paths[0].name} is not in {' or '.join(folder.name for folder in FOLDERS)}")
    with np.load(found[0]) as file:
        return {key: file[key] for key in file.files}


def model_from(arrays, prefix, with_head=True):
    """PFLlib's 'base' is our body, and so is its 'bn1', if there is one."""

    def layer(name, *kinds):
        return {kind: arrays[f"{prefix}{name}/{kind}"] for kind in kinds}

    body = {"Dense_0": layer("base", "kernel", "bias")}
    if f"{prefix}bn1/scale" in arrays:
        body["BatchNorm_0"] = layer("bn1", "scale", "bias", "mean", "var")
    if not with_head:
        return {"body": body}
    return {"body": body, "head": layer("head", "kernel", "bias")}


def initial_model(theirs):
    """The model before the first round, which all methods without another network share."""
    if {"init/global/base/kernel", "init/global/head/bias"} <= set(theirs):
        return model_from(theirs, "init/global/")
    shared = model_from({f"/{name}": array for name, array in read("init").items()}, "/")
    return {"body": {"Dense_0": shared["body"]["Dense_0"]}, "head": shared["head"]}


def their_names(model):
    """`(path in PFLlib's files, array)` of each array of one of our trees."""
    body = model.get("body", {})
    layers = {
        "base": body.get("Dense_0", {}),
        "bn1": body.get("BatchNorm_0", {}),
        "head": model.get("head", {}),
    }
    for name, layer in layers.items():
        for kind, array in layer.items():
            yield f"{name}/{kind}", array


def settings_of(theirs):
    """The hyper-parameters; files of other sources than PFLlib's programs have fewer names."""
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    defaults = {
        "join_ratio": 1.0,
        "local_epochs": 1,
        "local_learning_rate": settings.get("lr"),
        "global_rounds": settings["loop_iterations"] - 1,
    }
    return {**defaults, **settings}


@pytest.mark.parametrize("name", CASES)
def test_trajectory(name, monkeypatch):
    case, name = CASES[name], name.split()[0]
    data, theirs = read("data"), read(f"{case.file}.f64")
    settings = settings_of(theirs)
    assert settings["join_ratio"] == 1.0, "written for full participation"
    assert settings["loop_iterations"] >= 4
    with jax.enable_x64(True):
        if case.tape:
            module = importlib.import_module(f"pfljax.algorithms.{name}")
            for patched in case.tape(theirs, settings).items():
                monkeypatch.setattr(module, *patched)
        follow(name, case, data, theirs, settings)


def has(theirs, key):
    """Whether a file has an array; only a distilled one may leave out some."""
    if key in theirs:
        return True
    assert json.loads(str(theirs["meta"])).get("distilled"), f"{key} is missing"
    return False


def set_up(data, theirs, settings):
    """The task, started at PFLlib's initial weights, and the local training of PFLlib's clients."""
    initial = initial_model(theirs)
    width, classes = initial["head"]["kernel"].shape
    make = models.mlp_bn if "BatchNorm_0" in initial["body"] else models.mlp
    network = make(data["client0/train_x"].shape[1:], classes, widths=(width,))
    task = tasks.classification(network, num_classes=classes)._replace(
        init=lambda key: jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, float), initial)
    )
    local = core.LocalTraining(
        optax.sgd(settings["local_learning_rate"]),
        batch_size=settings["batch_size"],
        epochs=settings["local_epochs"],
        drop_remainder=True,
        shuffle=False,
        observe=task.observe,
    )
    return task, local


def follow(name, case, data, theirs, settings):
    """Trains as long as the file goes, and compares what it has of each round, of the last all."""
    examples = trajectories.examples_from(data)
    clients = examples.num_clients
    if case.counts:
        counts = [theirs[f"init/client{i}/{case.counts}"] for i in range(clients)]
        examples = dataclasses.replace(examples, class_counts=np.stack(counts))
    task, local = set_up(data, theirs, settings)
    task = case.task(task)
    algorithm = ALGORITHMS[name](task, case.local(local), **case.hyperparameters(settings))
    devices = jax.devices()[:2]
    placed = mapping.replicate(examples, devices)
    step = build_rounds(
        algorithm,
        sampling.CohortPlan(clients, clients),
        clients_per_chunk=1,
        rounds_per_call=1,
        devices=devices,
    )
    start = build_init(algorithm, join="initial", devices=devices)
    state = case.start(start(placed, jax.random.key(0)), theirs)
    deployed = jax.jit(functools.partial(outputs_of, algorithm, task))
    for _ in range(case.initial_rounds):
        state, _ = step(state, placed, np.int32(settings["global_rounds"]), np.int32(1))
    for round in range(settings["loop_iterations"]):
        compare_logits(case, algorithm, task, deployed, state, placed, data, theirs, round)
        state, _ = step(state, placed, np.int32(settings["global_rounds"]), np.int32(1))
        if round == 0:
            state = state._replace(clients=as_after_their_first_round(case, theirs, state.clients))
        compared = compare_state(case, state, theirs, round, clients)
    host = to_host(state, clients)
    assert compared == {*case.server(host.server), *case.client(host.clients)}


def as_after_their_first_round(case, theirs, clients):
    changed = case.first_round(clients, initial_model(theirs))
    return jax.tree.map(
        lambda new, old: jax.device_put(np.broadcast_to(new, old.shape), old.sharding),
        changed,
        clients,
    )


def same(ours, theirs):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def outputs_of(algorithm, task, server, private, client_data, inputs):
    """What the model says that a client would deploy."""
    context = core.Context(jax.random.key(0), jax.numpy.int32(0), jax.numpy.int32(1))
    model = algorithm.personalize(server, private, client_data, context)
    predict = algorithm.predict or (lambda model, inputs, key: task.predict(model, inputs))
    return predict(model, inputs, context.key)


def compare_logits(case, algorithm, task, deployed, state, placed, data, theirs, round):
    """PFLlib evaluates before it trains: what the clients would deploy after `round` rounds."""
    host = to_host(state, placed.num_clients)
    rows = jax.tree.map(federation.same_on_every_device, placed)
    for i in range(placed.num_clients):
        private = jax.tree.map(lambda leaf, i=i: leaf[i], host.clients)
        inputs = data[f"client{i}/test_x"].astype(np.float64)
        key = f"round{round}/test_logits/client{i}"
        if case.personal and key in theirs:
            outputs = deployed(host.server, private, rows.of_client(i), inputs)
            same(np.asarray(case.personal(outputs, host.server)), theirs[key])
        key = f"round{round}/{case.global_logits}/client{i}"
        if key in theirs:  # PFLlib's files have them for Ditto; the distilled ones leave them out.
            logits = task.predict(algorithm.global_params(host.server), inputs)
            same(np.asarray(logits), theirs[key])


def compare_state(case, state, theirs, round, clients):
    """Compares what the file has of a round; returns the names of it."""
    host, compared = to_host(state, clients), set()
    rows = [
        (name, f"round{round}/{name}", model) for name, model in case.server(host.server).items()
    ]
    for i, (name, all_models) in itertools.product(
        range(clients), case.client(host.clients).items()
    ):
        model = jax.tree.map(lambda leaf, i=i: leaf[i], all_models)
        rows.append((name, f"round{round}/client{i}/{name}", model))
    for name, prefix, model in rows:
        if not isinstance(model, dict):
            arrays = [(prefix, model)]
        else:
            arrays = [(f"{prefix}/{path}", array) for path, array in their_names(model)]
        for key, array in arrays:
            if key in theirs:  # FedALA has no weights before its second round.
                same(array, theirs[key])
                compared.add(name)
    return compared


def test_fine_tuning_of_fedbabu():
    """PFLlib fine-tunes from the client's last own body: so do we, if that is the server's."""
    data, theirs = read("data"), read("FedBABU.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    last = settings["loop_iterations"] - 1
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        algorithm = ALGORITHMS["fedbabu"](
            task, local, fine_tuning_epochs=settings["fine_tuning_epochs"]
        )
        server = algorithm.init_server(None, jax.random.key(0))
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        context = core.Context(jax.random.key(0), jax.numpy.int32(0), jax.numpy.int32(1))
        for i in range(examples.num_clients):
            own = model_from(theirs, f"round{last}/client{i}/model/")
            body = server.average._replace(params={"body": own["body"]})
            tuned = algorithm.personalize(
                server._replace(average=body), (), examples.of_client(i), context
            )
            for path, array in their_names(jax.tree.map(np.asarray, tuned)):
                same(array, theirs[f"final/client{i}/model/{path}"])


def test_pieces_of_apple():
    """PFLlib uploads the mixture for the core; the pull to the shares is the paper's.

    PFLlib sets the weight of the pull after training, for the next round.
    """
    data, theirs = read("data"), read("APPLE.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        population = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data)).population()
        server = ALGORITHMS["apple"](task, local).init_server(population, jax.random.key(0))
        same(np.asarray(server.shares), theirs["init/client0/p0"])
        for round in range(settings["global_rounds"]):
            weight = annealing(
                jax.numpy.int32(round),
                jax.numpy.int32(settings["global_rounds"]),
                duration=settings["L"],
                exponential=False,
                epsilon=0.001,
            )
            same(np.asarray(weight), theirs[f"round{round}/client0/lamda"])


def test_mixtures_of_fedamp():
    """PFLlib mixes the models of the last round before it trains, and we after training."""
    data, theirs = read("data"), read("FedAMP.f64")
    if "round0/client0/model/base/kernel" not in theirs:
        pytest.skip("the distilled file has the last round only")
    settings = settings_of(theirs)
    clients = settings["num_clients"]
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        algorithm = ALGORITHMS["fedamp"](
            task, local, alpha=settings["alphaK"], sigma=settings["sigma"]
        )
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        server = algorithm.init_server(None, jax.random.key(0))
        first = algorithm.init_client(server, None, None)
        cohort = core.Cohort(np.arange(clients), np.ones(clients, int), clients)
        for round in range(1, settings["loop_iterations"]):
            models = [
                model_from(theirs, f"round{round - 1}/client{i}/model/") for i in range(clients)
            ]
            uploads = core.Uploads((), jax.tree.map(lambda *rows: np.stack(rows), *models))
            for i in range(clients):
                mixed = algorithm.exchange(
                    server,
                    first._replace(params=models[i]),
                    examples.of_client(i),
                    uploads,
                    cohort,
                    i,
                    core.Context(jax.random.key(0), round, settings["global_rounds"]),
                )
                for path, array in their_names(jax.tree.map(np.asarray, mixed.mixture)):
                    same(array, theirs[f"round{round}/client{i}/client_u/{path}"])


def fedgc_head(theirs, prefix, index, classes):
    """PFLlib's head `[d, classes of the client]` with columns for all classes."""
    columns = theirs[f"{prefix}/head/kernel"]
    kernel = np.zeros((columns.shape[0], classes))
    kernel[:, index] = columns
    return {"head": {"kernel": kernel}}


def test_rounds_of_fedgc():
    """PFLlib's heads have no bias, and rows for the client's own classes only.

    It scores test rows of another class as its first one; these scores are not compared.
    """
    data, theirs = read("data"), read("FedGC.f64")
    settings = settings_of(theirs)
    clients, classes = settings["num_clients"], 10
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)

        def head(model, features, mask=None, key=None):
            return features @ model["head"]["kernel"]

        def init(key):
            model = task.init(key)
            return {**model, "head": {"kernel": model["head"]["kernel"]}}

        def features(model, *rest):  # the network has a bias in its head, which has no part here
            head = {**model["head"], "bias": jax.numpy.zeros(classes)}
            return task.features({**model, "head": head}, *rest)

        linear = task._replace(
            init=init,
            head=head,
            features=features,
            predict=lambda model, inputs, *rest: head(model, features(model, inputs, *rest)),
        )
        rate = settings["local_learning_rate"] * settings["lamda"]
        algorithm = ALGORITHMS["fedgc"](linear, local, correction_rate=rate)
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        cohort = core.Cohort(np.arange(clients), np.asarray(examples.sizes["train"]), clients)
        update, exchange = jax.jit(algorithm.client_update), jax.jit(algorithm.exchange)
        server = algorithm.init_server(None, jax.random.key(0))
        own = [np.flatnonzero(examples.class_counts[i]) for i in range(clients)]
        names = [f"init/client{i}/model" for i in range(clients)]
        heads = [fedgc_head(theirs, names[i], own[i], classes) for i in range(clients)]
        for round in range(settings["loop_iterations"]):
            context = core.Context(jax.random.key(0), round, settings["global_rounds"])
            rows = [examples.of_client(i) for i in range(clients)]
            for i in range(clients):
                key = f"round{round}/test_logits/client{i}"
                if key in theirs:
                    model = algorithm.personalize(server, heads[i], rows[i], context)
                    inputs = data[f"client{i}/test_x"].astype(np.float64)
                    scores = algorithm.predict(model, inputs, None)
                    same(np.asarray(scores)[:, own[i]], theirs[key])
            outputs = [update(server, heads[i], rows[i], context) for i in range(clients)]
            total = functools.reduce(core.tree.add, [output.sum for output in outputs])
            each = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *[o.each for o in outputs])
            uploads = core.Uploads(total, each)
            server = algorithm.server_update(server, uploads, cohort, context)
            heads = [
                exchange(server, outputs[i].state, rows[i], uploads, cohort, i, context)
                for i in range(clients)
            ]
            for path, array in their_names(server.shared.average.params):
                key = f"round{round}/global/{path}"
                if key in theirs:
                    same(np.asarray(array), theirs[key])
            for i in range(clients):
                trained = np.asarray(outputs[i].state["head"]["kernel"])[:, own[i]]
                corrected = np.asarray(heads[i]["head"]["kernel"])[:, own[i]]
                for key, array in (
                    (f"round{round}/client{i}/model/head/kernel", trained),
                    (f"round{round}/server/client_heads/{i}/head/kernel", corrected),
                ):
                    if key in theirs or round == settings["loop_iterations"] - 1:
                        same(array, theirs[key])
                assert not np.allclose(trained, corrected) or len(own[i]) == classes


def test_what_the_server_of_fedkd_sends():
    """PFLlib keeps the mean of the mentees, and cuts its ranks when it sends it."""
    data, theirs = read("data"), read("FedKD.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        algorithm = ALGORITHMS["fedkd"](
            task, local, compress_models=True, **fedkd_energies(settings)
        )
        server = algorithm.init_server(None, jax.random.key(0))
        for round in range(settings["loop_iterations"]):
            moment = core.Context(jax.random.key(0), round, settings["global_rounds"])
            mentees = [
                model_from(theirs, f"round{round}/client{i}/global_model/")
                for i in range(settings["num_clients"])
            ]
            energy = theirs[f"round{round}/server/energy"]
            sent = [compress(jax.tree.map(jax.numpy.asarray, m), energy)[0] for m in mentees]
            mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *sent)
            for path, array in their_names(mean):
                same(array, theirs[f"round{round}/global/{path}"])
            total = aggregation.Upload(core.weighted(mean, 1), aggregation.Public(()))
            cohort = core.Cohort(jax.numpy.arange(1), jax.numpy.ones(1, int), 1)
            server = algorithm.server_update(server, core.Uploads(total, ()), cohort, moment)
            again = truncated(theirs[f"round{round}/global/base/kernel"], energy)
            same(server.params["body"]["Dense_0"]["kernel"], again)


def truncated(matrix, energy):
    """The least ranks of a matrix that hold more than `energy`."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = 1 + np.sum(np.cumsum(values**2) <= energy * np.sum(values**2))
    return left[:, :rank] * values[:rank] @ right[:rank]


def stacked_heads(theirs, prefix, clients, model="model"):
    """PFLlib's heads of all clients in one tree, `[num_clients, ...]`."""
    names = [f"{prefix}client{client}/{model}/head" for client in range(clients)]
    return {
        "head": {k: np.stack([theirs[f"{name}/{k}"] for name in names]) for k in ("kernel", "bias")}
    }


def test_rounds_of_fedpac():
    """Round after round from PFLlib's state: PFLlib mixes the heads one after the other in place.

    It also drops weights below 0.001, and its solver is less exact than ours.
    """
    data, theirs = read("data"), read("FedPAC.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    close = functools.partial(federation.assert_close, tolerance=1e-4)
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        algorithm = ALGORITHMS["fedpac"](task, local, lam=settings["lamda"], weight_by_size=False)
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        clients = examples.num_clients
        cohort = core.Cohort(np.arange(clients), np.asarray(examples.sizes["train"]), clients)
        context = core.Context(jax.random.key(0), jax.numpy.int32(0), jax.numpy.int32(1))
        update = jax.jit(algorithm.client_update)
        server = algorithm.init_server(None, context.key)
        heads = stacked_heads(theirs, "init/", clients)
        for round in range(settings["loop_iterations"]):
            now = f"round{round}/"
            outputs = []
            for i in range(clients):
                head = jax.tree.map(lambda leaf, i=i: leaf[i], heads)
                outputs.append(update(server, head, examples.of_client(i), context))
                same(outputs[i].each.shares, np.nan_to_num(theirs[f"{now}client{i}/h"]))
                same(outputs[i].each.variance, theirs[f"{now}client{i}/V"])
            total = functools.reduce(core.tree.add, [output.sum for output in outputs])
            each = jax.tree.map(lambda *rows: np.stack(rows), *[o.each for o in outputs])
            server = algorithm.server_update(server, core.Uploads(total, each), cohort, context)
            same(server.prototypes.means, theirs[f"{now}server/global_protos"])
            for path, array in their_names(server.average.params):
                same(array, theirs[f"{now}global/{path}"])

            all_clients = np.ones(clients, bool)
            weights = np.stack([head_weights(each, all_clients, i) for i in range(clients)])
            dropped = np.where(weights > 1e-3, weights, 0)
            close(dropped, theirs[f"{now}server/head_weights"])
            heads = stacked_heads(theirs, now, clients)
            for kind, mixed in each.head["head"].items():
                for i in range(clients):  # later clients take of what the earlier ones mixed
                    mixed[i] = np.tensordot(dropped[i], mixed, 1)
                close(mixed, heads["head"][kind])


# PFLlib's names for the arrays of FedCP's policy.
POLICY = {
    "linear": {"kernel": "fc/0/kernel", "bias": "fc/0/bias"},
    "norm": {"scale": "fc/1/scale", "bias": "fc/1/bias"},
}


def fedcp_server(theirs, round):
    """Body, common head and policy after a round."""
    parts = ("global_modules/base", "head/head")
    arrays = {
        f"{part.split('/')[1]}/{kind}": theirs[f"round{round}/server/{part}/{kind}"]
        for part in parts
        for kind in ("kernel", "bias")
    }
    policy = jax.tree.map(lambda name: theirs[f"round{round}/server/cs/{name}"], POLICY)
    return jax.tree.map(jax.numpy.asarray, {"model": model_from(arrays, ""), "policy": policy})


def test_rounds_of_fedcp(monkeypatch):
    """From PFLlib's second round on: in the first its policy sees random directions.

    It draws noise in evaluation too; what it drew there and in training is handed out to ours.
    """
    data, theirs = read("data"), read("FedCP.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    clients, rounds, batch = (
        settings[name] for name in ("num_clients", "loop_iterations", "batch_size")
    )
    keys, noise = [], []
    for round, client in itertools.product(range(1, rounds), range(clients)):
        drawn = theirs[f"round{round}/client{client}/tape/train_cs_model/gumbel"]
        noise.append(drawn.reshape(-1, batch, *drawn.shape[1:]))
        keys += step_keys(round, client, len(noise[-1]))
    rows = lookup(keys, np.concatenate(noise))
    module = importlib.import_module("pfljax.algorithms.fedcp")

    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        algorithm = ALGORITHMS["fedcp"](task, local, lam=settings["lamda"], noisy_evaluation=True)
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        update = jax.jit(algorithm.client_update)
        start = algorithm.init_server(None, jax.random.key(0))
        server = start._replace(params=fedcp_server(theirs, 0))
        heads = stacked_heads(theirs, "round0/", clients, "model/model")
        heads = [jax.tree.map(lambda leaf, i=i: leaf[i], heads) for i in range(clients)]
        for round in range(1, rounds):
            outputs = []
            for i in range(clients):
                key = streams.key_of(jax.random.key(0), streams.UPDATE, round, i)
                context = core.Context(key, jax.numpy.int32(round), jax.numpy.int32(rounds))
                at_test = theirs[f"round{round}/client{i}/tape/test_metrics/gumbel"]
                monkeypatch.setattr(module, "draw", lambda *_, at_test=at_test: at_test)
                model = algorithm.personalize(server, heads[i], examples.of_client(i), context)
                logits = algorithm.predict(model, data[f"client{i}/test_x"].astype(float), key)
                same(np.asarray(logits), theirs[f"round{round}/test_logits/client{i}"])
                monkeypatch.setattr(module, "draw", lambda key, *_: rows(key)[0])
                outputs.append(update(server, heads[i], examples.of_client(i), context))
            heads = [output.state for output in outputs]
            theirs_now = stacked_heads(theirs, f"round{round}/", clients, "model/model")
            for i, path in itertools.product(range(clients), ("kernel", "bias")):
                same(heads[i]["head"][path], theirs_now["head"][path][i])
            total = functools.reduce(core.tree.add, [output.sum for output in outputs])
            server = algorithm.server_update(server, core.Uploads(total, ()), None, None)
            jax.tree.map(same, server.params, fedcp_server(theirs, round))


def test_rounds_of_fedgh():
    """Round after round from PFLlib's state: its server trains the head that client 0 has trained.

    It has the class means in the order in which classes appear. Here each belongs to a client of
    its own, in that order.
    """
    data, theirs = read("data"), read("FedGH.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    clients, rounds = settings["num_clients"], settings["loop_iterations"]
    compared = 0
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        algorithm = ALGORITHMS["fedgh"](
            task,
            local,
            server_rate=settings["server_learning_rate"],
            server_batch=settings["batch_size"],
        )
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        context = core.Context(jax.random.key(0), jax.numpy.int32(0), jax.numpy.int32(1))
        update = jax.jit(algorithm.client_update)
        server = algorithm.init_server(None, context.key)
        bodies = [server.initial_body] * clients
        for round in range(rounds):
            now, rows = f"round{round}/", []
            for i in range(clients):
                model = algorithm.personalize(server, bodies[i], None, None)
                if has(theirs, f"{now}test_logits/client{i}"):
                    inputs = data[f"client{i}/test_x"].astype(float)
                    same(
                        np.asarray(task.predict(model, inputs)),
                        theirs[f"{now}test_logits/client{i}"],
                    )
                trained = core.train(task.loss, model, examples.of_client(i), context, local).params
                if i == 0:
                    first_head = {"head": trained["head"]}
                output = update(server, bodies[i], examples.of_client(i), context)
                bodies[i] = output.state
                means = np.asarray(output.each.means)
                if has(theirs, f"{now}client{i}/protos"):
                    same(means, np.nan_to_num(theirs[f"{now}client{i}/protos"]))
                rows += [(c, means[c]) for c in order_of_classes(data, i, settings["batch_size"])]
            each = Prototypes(
                np.stack([np.where(np.arange(10)[:, None] == c, mean, 0) for c, mean in rows]),
                np.stack([np.arange(10) == c for c, _ in rows]),
            )
            each = jax.tree.map(jax.numpy.asarray, each)
            cohort = core.Cohort(np.arange(len(rows)), np.ones(len(rows)), len(rows))
            server = algorithm.server_update(
                server._replace(head=first_head), core.Uploads((), each), cohort, context
            )
            for path, array in their_names(server.head):
                if has(theirs, f"{now}server/head/{path}"):
                    same(array, theirs[f"{now}server/head/{path}"])
                    compared += 1
    assert compared >= 2


def order_of_classes(data, client, batch):
    """The classes of a client in the order in which they appear in its whole batches."""
    labels = data[f"client{client}/train_y"]
    return list(dict.fromkeys(labels[: len(labels) // batch * batch].tolist()))


def in_order(theirs, name):
    """PFLlib's prototypes in the order in which it has put them in, as it reads them by class."""
    means = theirs[name][theirs[f"{name}_order"]]
    return Prototypes(jax.numpy.asarray(means), jax.numpy.ones(len(means), bool))


def test_rounds_of_fedpcl():
    """Round after round from PFLlib's state, whose prototypes are in another order than its labels.

    After a round, its clients have the global prototypes of the classes that they lack.
    """
    data, theirs = read("data"), read("FedPCL.f64")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    clients, rounds = settings["num_clients"], settings["loop_iterations"]
    compared = 0
    with jax.enable_x64(True):
        task, local = set_up(data, theirs, settings)
        clipped = optax.chain(optax.clip_by_global_norm(10.0), local.optimizer)
        algorithm = ALGORITHMS["fedpcl"](
            task, local._replace(optimizer=clipped), tau=settings["tau"], own_class=True
        )
        examples = jax.tree.map(jax.numpy.asarray, trajectories.examples_from(data))
        context = core.Context(jax.random.key(0), jax.numpy.int32(0), jax.numpy.int32(1))
        update = jax.jit(algorithm.client_update)
        server = algorithm.init_server(examples.population(), context.key)
        profile = examples.profile(jax.numpy.int32(0))
        start = algorithm.init_client(server, profile, context.key)
        cohort = core.Cohort(np.arange(clients), np.asarray(examples.sizes["train"]), clients)
        for round in range(rounds):
            now, before, outputs = f"round{round}/", f"round{round - 1}/", []
            if round > 0:
                if not has(theirs, f"{before}server/global_protos"):
                    continue
                rows = [in_order(theirs, f"{before}client{i}/protos") for i in range(clients)]
                each = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *rows)
                common = in_order(theirs, f"{before}server/global_protos")
                server = server._replace(prototypes=common, each=each)
            for i in range(clients):
                client = start
                if round > 0:
                    if not has(theirs, f"{before}client{i}/model/base/kernel"):
                        continue
                    body = model_from(theirs, f"{before}client{i}/model/", with_head=False)
                    known = Prototypes(theirs[f"{before}client{i}/protos"], np.ones(10, bool))
                    client = start._replace(body=jax.tree.map(jax.numpy.asarray, body), own=known)
                    model = algorithm.personalize(server, client, None, None)
                    scores = algorithm.predict(model, data[f"client{i}/test_x"].astype(float), None)
                    same(np.asarray(scores), theirs[f"{now}test_logits/client{i}"])
                output = update(server, client, examples.of_client(i), context)
                outputs.append(output)
                if has(theirs, f"{now}client{i}/model/base/kernel"):
                    for path, array in their_names(output.state.body):
                        same(array, theirs[f"{now}client{i}/model/{path}"])
                    have = np.asarray(output.each.seen)
                    same(output.each.means[have], theirs[f"{now}client{i}/protos"][have])
                    compared += 1
            if len(outputs) == clients and has(theirs, f"{now}server/global_protos"):
                sent = jax.tree.map(lambda *rows: np.stack(rows), *[o.each for o in outputs])
                after = algorithm.server_update(server, core.Uploads((), sent), cohort, context)
                same(np.asarray(after.prototypes.means), theirs[f"{now}server/global_protos"])
                compared += 1
    assert compared >= 1
