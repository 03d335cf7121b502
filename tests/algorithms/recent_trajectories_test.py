"""Trajectories of methods that PFLlib lacks, in float64, from implementations beside ours.

The folder is taken from the environment variable `PFLJAX_RECENT_TRAJECTORIES`; without it, from the
distilled files in `third_party/recent_trajectories`. Data, initial weights, cohorts and
hyper-parameters are read from the files. What a file has of a round is compared after that round,
and of the last round all that a method names.
"""

import dataclasses
import functools
import json
import os
from typing import NamedTuple

import delays
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trajectories

from pfljax import core
from pfljax.algorithms import ALGORITHMS, ditto, pefll, proar_pfed
from pfljax.core.params import split_params
from pfljax.engine import init, sampling
from pfljax.engine.reference import reference_round
from pfljax.models.kernels.convolution import convolution
from pfljax.ops import channel, full_batch, hadamard

TOLERANCE = 1e-8
RATES = ("lr", "local_learning_rate", "lr_model")  # the names of the learning rate
FACTORS = ("x1", "y1", "x2", "y2")


class Case(NamedTuple):
    """How a method is in its file.

    Attributes:
      name: The name of the method here.
      hyperparameters: `(those of the file) -> ours`.
      server: `(our server state) -> {name in the file: model or array}`.
      client: `(our state of a client) -> {name in the file: model or array}`.
      local: `(our local training, those of the file) -> local training`.
      start: `(our server state, the file) -> server state`, which puts in what was drawn at random.
      own: `(the file, the number of a client) -> the client's initial state`; None for that of the
        method. It is used where the file has `init/client{k}/...`.
      epochs: `(those of the file) -> [num_clients]`, numbers of local epochs that differ between
        clients; None for one number.
      cohorts: `(the description in the file) -> the cohort of each round`.
      staleness: `(those of the file) -> [rounds, num_clients]`, how late clients are; None for
        a method without delays.
      state: The prefix of what the server has after a round.
      deployed: The key of the outputs of the models that the clients deploy after a round.
      outputs: `(our outputs) -> theirs`.
      examples: `(the file of the data) -> arrays of the same names`.
      in_full_set_only: Whether the file is too large for this repository; the test is skipped
        without the full set.
      patch: `(monkeypatch, the file) -> None`, which puts in what is drawn at random in training,
        or makes ours do what theirs does otherwise.
    """

    name: str
    hyperparameters: object = lambda theirs: {}
    server: object = lambda server: {"global": server.params}
    client: object = lambda client: {}
    local: object = lambda local, theirs: local
    start: object = lambda server, theirs: server
    own: object = None
    epochs: object = None
    cohorts: object = lambda meta: meta["schedule"]
    staleness: object = None
    state: str = "round{round}/"
    deployed: str = "round{round}/test_logits/client{client}"
    outputs: object = lambda outputs: outputs
    examples: object = lambda data: data
    in_full_set_only: bool = False
    patch: object = lambda monkeypatch, theirs: None


def of_mime(server):
    return {"global": server.average.params, "server/momentum": server.momentum}


def clusters_from(server, theirs):
    """IFCA's models, each from other weights."""
    models = [trajectories.model_from(theirs, f"init/cluster{c}/") for c in range(2)]
    return server._replace(params=jax.tree.map(lambda *rows: jnp.stack(rows), *models))


def by_first_member(cluster):
    """Clusters numbered by their smallest member."""
    first = {c: int(np.argmax(cluster == c)) for c in set(cluster.tolist())}
    order = sorted(first, key=first.get)
    return np.array([order.index(c) for c in cluster])


def of_fedselect(client):
    """The model of a client, and the masks of its kernels; those of biases are empty."""
    masks = dict(trajectories.names_of(client.personal))
    kernels = {f"mask/{part}/kernel": masks[f"{part}/kernel"] for part in ("base", "head")}
    return {"model": client.params, **kernels}


def of_pgfed(server):
    return {"global": server.average.params, "server/alpha": server.weights}


def pass_over_full_batches(monkeypatch, theirs):
    """The last loss and gradient of a client, without its last partial batch."""
    passing = full_batch.value_and_gradient

    def value_and_gradient(task, params, data, context, local):
        size = data.size // local.batch_size * local.batch_size
        return passing(task, params, dataclasses.replace(data, size=size), context, local)

    monkeypatch.setattr(full_batch, "value_and_gradient", value_and_gradient)


def full_batches(data):
    """The rows of each client's full batches, by whose number the average is weighted."""
    return {
        key: rows[: len(rows) // 10 * 10] if "/train_" in key else rows
        for key, rows in data.items()
    }


def factors_from(server, theirs):
    """A server with the initial factors of the file, which are drawn at random."""

    def layer(name):
        kernel = {factor: theirs[f"{name}/kernel/{factor.upper()}"] for factor in FACTORS}
        return jax.tree.map(jnp.asarray, {"kernel": kernel, "bias": theirs[f"{name}/bias"]})

    theirs = {key.removeprefix("init/factors/"): array for key, array in theirs.items()}
    model = {"body": {"Dense_0": layer("base")}, "head": layer("head")}
    if hasattr(server, "params"):
        return server._replace(params=model)
    second, first = split_params(model, hadamard.is_second)
    return server._replace(average=server.average._replace(params=first), initial_head=second)


def names_of_factors(prefix, model):
    """The factors and biases of a model, or of a part of it, by their names in the files."""
    layers = {"base": model["body"]["Dense_0"], "head": model["head"]}
    return {
        f"{prefix}/{name}/{path}": array
        for name, layer in layers.items()
        for path, array in (
            *((f"kernel/{factor.upper()}", array) for factor, array in layer["kernel"].items()),
            *(("bias", layer[kind]) for kind in ("bias",) if kind in layer),
        )
    }


def flushes(meta):
    """FedBuff's events `(client, version)`, in groups of a buffer."""
    theirs = meta["hyperparameters"]
    events, size = theirs["events"], theirs["buffer"]
    return [events[start : start + size] for start in range(0, len(events), size)]


def lateness(meta):
    table = np.zeros((len(flushes(meta)), meta["hyperparameters"]["num_clients"]), int)
    for round, events in enumerate(flushes(meta)):
        for client, version in events:
            table[round, client] = round - version
    return table


def with_momentum(local, theirs):
    rate = local.learning_rate
    return local._replace(optimizer=optax.sgd(rate, momentum=theirs["momentum"]))


def head_from(theirs, name):
    return {kind: jnp.asarray(theirs[f"{name}/{kind}"]) for kind in ("kernel", "bias")}


def fedloge_from(server, theirs):
    """FedLoGe's frame after its optimization, and the generic head."""
    params = {**server.average.params, "head": head_from(theirs, "init/g_aux")}
    frame = {"kernel": theirs["sse/step500"], "bias": theirs["sse/bias"]}
    return server._replace(average=server.average._replace(params=params), frame=frame)


def of_fedloge(server):
    names = dict(trajectories.names_of(server.average.params))
    folders = {"base": "global/base", "head": "server/g_aux"}
    return {f"{folders[key.split('/')[0]]}/{key.split('/')[1]}": names[key] for key in names}


def encoder():
    """FedGMM's encoder in the file, a linear map of the inputs."""
    params = {"mean": jnp.zeros(64), "components": jnp.zeros((64, 6))}

    def features(params, inputs, mask=None, key=None):
        return (inputs - params["mean"]) @ params["components"]

    start = trajectories.model_from(initial(), "init/global/")
    task = trajectories.task_from(start)
    return task._replace(init=lambda key: params, features=features, num_features=6)


def fedgmm_from(server, theirs):
    """FedGMM's learners, which both of its files share, distributions and encoder."""
    shared = trajectories.read_recent("FedGMM.f64")
    models = [trajectories.model_from(shared, f"init/global/{b}/") for b in range(2)]
    models = jax.tree.map(lambda *rows: jnp.stack(rows), *models)
    names = ("mean", "components")
    params = {name: jnp.asarray(shared[f"init/encoder/{name}"]) for name in names}
    common = [jnp.asarray(shared[f"init/server/{name}"]) for name in ("mu", "var")]
    return server._replace(
        average=server.average._replace(params=models),
        components=type(server.components)(*common),
        encoder={**server.encoder, "params": params},
    )


def of_fedgmm(server):
    """The distributions, and of each learner the head and the bias of the body."""
    found = {"server/mu": server.components.means, "server/var": server.components.covariances}
    learners = server.average.params
    for b in range(2):
        found[f"global/{b}/base/bias"] = learners["body"]["Dense_0"]["bias"][b]
        for kind in ("kernel", "bias"):
            found[f"global/{b}/head/{kind}"] = learners["head"][kind][b]
    return found


def fedgmm(released):
    return Case(
        "fedgmm",
        lambda theirs: {
            "components": theirs["M1"],
            "learners": theirs["M2"],
            "ridge": theirs["eps"],
            "released": released,
            "encoder": encoder(),
        },
        of_fedgmm,
        lambda client: {"pi": client},
        start=fedgmm_from,
        deployed="round{round}/test_probabilities/client{client}",
        outputs=np.exp,
    )


def of_proar(monkeypatch, theirs):
    """The channels of the file, and its personalized models, trained without weight decay."""
    gains, known = (
        jnp.asarray(theirs[f"tape/{name}_re"] + 1j * theirs[f"tape/{name}_im"])
        for name in ("h", "hhat")
    )
    rate = json.loads(str(theirs["meta"]))["hyperparameters"]["local_learning_rate"]

    def of_client(context, elements, error, target, dtype):
        row = context.round, context.client_id
        return gains[row], known[row]

    def without_decay(method, task, local, **others):
        local = local._replace(optimizer=optax.sgd(rate))
        return ditto.with_personal_models(method, task, local, **others)

    monkeypatch.setattr(channel, "of_client", of_client)
    monkeypatch.setattr(proar_pfed, "with_personal_models", without_decay)


def of_fedjets(server, theirs):
    """The experts and the gate of the file; clients 0 and 1 are the anchors of the first two."""
    models = [trajectories.model_from(theirs, f"init/experts/{m}/") for m in range(3)]
    experts = jax.tree.map(lambda *rows: jnp.stack(rows), *models)
    gate = {kind: jnp.asarray(theirs[f"init/gate/{kind}"]) for kind in ("kernel", "bias")}
    return server._replace(
        experts=server.experts._replace(params=experts),
        gate=server.gate._replace(params=gate),
        anchors=jnp.array([0, 1, -1], jnp.int32),
    )


def networks_of_pefll(phi):
    """Embedding network and hypernetwork of the file, given its arrays by their names."""

    def layer(name):
        return {kind: jnp.asarray(phi[f"{name}/{kind}"]) for kind in ("kernel", "bias")}

    def heads(kind):
        arrays = {}
        for name, shape in PEFLL_SHAPES.items():
            array = jnp.asarray(phi[f"hyper/out/{name}/{kind}"])
            arrays[name] = array.reshape(array.shape[:-1] + shape)
        return trajectories.model_from(arrays, "")

    embedding = {"hidden": layer("embed/0"), "out": layer("embed/1")}
    network = {
        "hidden": [layer("hyper/0")],
        "linear": layer("hyper/1"),
        "heads": {"kernel": heads("kernel"), "bias": heads("bias")},
    }
    return embedding, network


PEFLL_SHAPES = {
    "base/kernel": (64, 32),
    "base/bias": (32,),
    "head/kernel": (32, 10),
    "head/bias": (10,),
}


def of_pefll(server, theirs):
    """Both networks of the file, and its scale, which is that of sums of ten rows over two."""
    phi = {key.removeprefix("init/phi/"): array for key, array in theirs.items()}
    embedding, network = networks_of_pefll(phi)
    scale = (jnp.asarray(theirs[f"round0/server/{name}"]) / 5 for name in ("m", "s"))
    return server._replace(
        embedding={**server.embedding, **embedding},
        network=network,
        scale=pefll.Scale(*scale, jnp.ones((), bool)),
    )


def embedded_inputs():
    """The task of a network whose features are its inputs."""
    task = trajectories.task_from(
        {"body": {"Dense_0": {"kernel": np.zeros((64, 1))}}, "head": {"kernel": np.zeros((1, 10))}}
    )
    return task._replace(
        features=lambda params, inputs, mask=None, key=None: inputs, num_features=64
    )


def after_the_first_batch(data):
    """The full batches of each client, with the first one, which makes the descriptor, last."""
    moved = dict(data)
    for key, rows in data.items():
        if key.endswith(("train_x", "train_y")):
            moved[key] = np.roll(rows[: len(rows) // 10 * 10], -10, axis=0)
    return moved


def with_the_last_batch(monkeypatch, theirs):
    monkeypatch.setattr(
        pefll,
        "one_batch",
        lambda data, context, local: data.take(data.size - 10 + jnp.arange(10)),
    )


def stages(meta, round):
    """The stage of a round, and its number there."""
    first = meta["hyperparameters"].get("rounds_global", round + 1)
    return {"stage": 1, "step": round} if round < first else {"stage": 2, "step": round - first}


def groups_of(theirs):
    group = {k: g for g, members in enumerate(theirs["groups"]) for k in members}
    return ",".join(str(group[k]) for k in sorted(group))


CASES = {
    "FedNova": Case(
        "fednova",
        local=with_momentum,
        epochs=lambda theirs: theirs["epochs"],
    ),
    "qFFL": Case("qffl", lambda theirs: {"q": theirs["q"]}),
    "AFL": Case(
        "afl",
        lambda theirs: {"gamma": theirs["gamma"]},
        lambda server: {"global": server.average.params, "server/lambda": server.mixture},
    ),
    "IFCA": Case(
        "ifca",
        lambda theirs: {"clusters": theirs["clusters"]},
        lambda server: {
            f"server/cluster{c}": jax.tree.map(lambda leaf, c=c: leaf[c], server.params)
            for c in range(2)
        },
        start=clusters_from,
    ),
    "CFL": Case(
        "cfl",
        lambda theirs: {name: theirs[name] for name in ("eps1", "eps2", "warmup")},
        lambda server: {"server/cluster": by_first_member(np.asarray(server.cluster))},
    ),
    "kNNPer": Case(
        "knnper",
        lambda theirs: {"k": theirs["k"], "lam": theirs["lambda"], "scale": theirs["scale"]},
        deployed="final/client{client}/mixture",
        outputs=np.exp,
    ),
    "Mime": Case("mime", lambda theirs: {"beta": theirs["beta"]}, of_mime),
    "MimeLite": Case("mimelite", lambda theirs: {"beta": theirs["beta"]}, of_mime),
    "Reptile": Case("reptile", lambda theirs: {"epsilon": theirs["server_lr"], "annealing": 0.0}),
    "FedBuff": Case(
        "fedbuff",
        lambda theirs: {"server_optimizer": optax.sgd(theirs["server_lr"])},
        lambda server: {"global": server.method.params},
        cohorts=lambda meta: [[client for client, _ in events] for events in flushes(meta)],
        staleness=lateness,
        state="version{version}/",
    ),
    "FedSelect": Case(
        "fedselect",
        lambda theirs: {
            "growth": theirs["prune_percent"] / 100,
            "target": theirs["prune_target"] / 100,
            "every": theirs["lth_epoch_iters"],
            "deploy_trained": True,
        },
        # The file has zeros where all clients have personalized an entry, and no last average; the
        # clients' models of the last round are trained from all other entries.
        lambda server: {},
        of_fedselect,
    ),
    "PGFed": Case(
        "pgfed",
        lambda theirs: {"mu": theirs["mu"], "weight_rate": theirs["lambda"]},
        of_pgfed,
        lambda client: {"model": client},
        patch=pass_over_full_batches,
    ),
    "PGFedMo": Case(
        "pgfedmo",
        lambda theirs: {
            **{name: theirs[name] for name in ("mu", "beta")},
            "weight_rate": theirs["lambda"],
        },
        of_pgfed,
        lambda client: {"model": client.params},
        patch=pass_over_full_batches,
    ),
    "FedPara": Case(
        "fedpara",
        lambda theirs: {"rank": theirs["rank"]},
        lambda server: names_of_factors("global", server.params),
        start=factors_from,
    ),
    "pFedPara": Case(
        "pfedpara",
        lambda theirs: {"rank": theirs["rank"]},
        lambda server: names_of_factors("global", server.average.params),
        lambda client: names_of_factors("factors", client),
        start=factors_from,
    ),
    "SpectralCoDist": Case(
        "spectral_codist",
        lambda theirs: {
            "generic_weight": theirs["lambda_g"],
            "personal_weight": theirs["lambda_l"],
            "squared": theirs["squared_prox"],
            **{name: theirs[name] for name in ("beta", "rho")},
        },
        client=lambda client: {"personal": client},
    ),
    "FedLoGe": Case(
        "fedloge",
        lambda theirs: {"frame_steps": 0, "realign": False},
        of_fedloge,
        lambda client: {f"l_head/{kind}": client["head"][kind] for kind in ("kernel", "bias")},
        local=with_momentum,
        start=fedloge_from,
        own=lambda theirs, k: {"head": head_from(theirs, f"init/client{k}/l_head")},
    ),
    "FedGMM": fedgmm(released=False),
    "FedGMM-code": fedgmm(released=True),
    "PROAR-core": Case(
        "proar_pfed",
        lambda theirs: {
            **{name: theirs[name] for name in ("beta", "power")},
            "lam": theirs["lambda"],
            "rate_factor": theirs["personal_lr"] / theirs["local_learning_rate"],
            "server_optimizer": optax.sgd(theirs["server_lr"]),
            "snr_db": 200.0,
        },
        lambda server: {"global": server.average.params},
        local=lambda local, theirs: local._replace(
            optimizer=optax.chain(
                optax.clip_by_global_norm(theirs["clip"]),
                optax.add_decayed_weights(theirs["weight_decay"]),
                local.optimizer,
            )
        ),
        patch=of_proar,
    ),
    "FedJETs": Case(
        "fedjets",
        lambda theirs: {
            **{name: theirs[name] for name in ("experts", "top")},
            "anchor_weight": theirs["kappa"],
        },
        lambda server: {f"server/gate/{kind}": array for kind, array in server.gate.params.items()},
        start=of_fedjets,
        deployed="round{round}/test_probabilities/client{client}",
        outputs=np.exp,
    ),
    "GroupPFL": Case(
        "group_pfl",
        lambda theirs: {
            "groups": len(theirs["groups"]),
            "group_of_clients": groups_of(theirs),
            "global_share": theirs["rounds_global"]
            / (theirs["rounds_global"] + theirs["rounds_group"]),
            "personal_epochs": theirs["epochs_personal"],
        },
        lambda server: {
            f"group{g}": jax.tree.map(lambda leaf, g=g: leaf[g], server.params) for g in (0, 1)
        },
        state="stage{stage}/round{step}/",
        deployed="stage3/test_logits/client{client}",
    ),
    "PeFLL": Case(
        "pefll",
        lambda theirs: {
            "rate": theirs["lr"],
            "clip": theirs["clip"],
            "embedding_size": theirs["embed_dim"],
            "embedding_hidden": theirs["embed_hidden"],
            "hidden": theirs["hyper_hidden"],
            "layers": 1,
            "embedding": embedded_inputs(),
        },
        lambda server: {
            f"server/phi/embed/{number}/{kind}": server.embedding[name][kind]
            for number, name in enumerate(("hidden", "out"))
            for kind in ("kernel", "bias")
        },
        local=lambda local, theirs: local._replace(
            optimizer=optax.chain(
                optax.clip_by_global_norm(theirs["clip"]),
                optax.add_decayed_weights(theirs["inner_weight_decay"]),
                optax.sgd(theirs["inner_lr"], momentum=theirs["inner_momentum"]),
            ),
            num_steps=theirs["inner_steps"],
        ),
        start=of_pefll,
        examples=after_the_first_batch,
        in_full_set_only=True,
        patch=with_the_last_batch,
    ),
    "pFedGate": Case(
        "pfedgate",
        trajectories.settings_of_pfedgate,
        client=trajectories.names_of_gate,
        local=trajectories.clipped_local,
        own=trajectories.gate_from,
        examples=full_batches,
        in_full_set_only=True,
    ),
}


def with_epochs_of_each_client(make, epochs):
    """Returns a method whose clients train for different numbers of epochs.

    Args:
      make: `epochs -> method`.
      epochs: `[num_clients]`.
    """
    method, table = make(1), jnp.asarray(epochs)

    def client_update(received, client, data, context):
        own = make(table[context.client_id])
        return own.client_update(received, client, data, context)

    return method._replace(client_update=client_update)


@pytest.mark.parametrize("file", CASES)
def test_trajectory(file, monkeypatch):
    case = CASES[file]
    if case.in_full_set_only and "PFLJAX_RECENT_TRAJECTORIES" not in os.environ:
        pytest.skip("set PFLJAX_RECENT_TRAJECTORIES to the folder of the full set")
    data = trajectories.read_recent("data")
    theirs = {**initial(), **trajectories.read_recent(f"{file}.f64")}
    with jax.enable_x64(True):
        follow(case, data, theirs, monkeypatch)


def initial():
    """Returns the initial weights, which the distilled files share."""
    found = trajectories.read_recent("init")
    return {f"init/global/{key}": array.astype(float) for key, array in found.items()}


def follow(case, data, theirs, monkeypatch):
    """Trains on the cohorts of the file and compares after every round."""
    meta = json.loads(str(theirs["meta"]))
    settings = meta["hyperparameters"]
    task = trajectories.task_from(trajectories.model_from(theirs, "init/global/"))
    case.patch(monkeypatch, theirs)
    if case.staleness is not None:
        delays.follow(monkeypatch, case.staleness(meta))

    def make(epochs):
        rate = next(settings[key] for key in RATES if key in settings)
        local = trajectories.local_training(rate, settings["batch_size"], epochs)
        local = case.local(local, settings)
        return ALGORITHMS[case.name](task, local, **case.hyperparameters(settings))

    if case.epochs is not None:
        algorithm = with_epochs_of_each_client(make, case.epochs(settings))
    else:
        algorithm = make(1)
    examples = jax.tree.map(jnp.asarray, trajectories.examples_from(case.examples(data)))
    count = examples.num_clients
    cohorts = case.cohorts(meta)
    left = iter(cohorts)
    monkeypatch.setattr(sampling, "sample", lambda plan, key: next(left))
    key = jax.random.key(0)
    server = init.init_server(algorithm, examples.population(), key)
    server = case.start(server, theirs)
    clients = [None] * count  # the method initializes these
    for k in range(count) if case.own is not None else ():
        if any(key.startswith(f"init/client{k}/") for key in theirs):
            clients[k] = case.own(theirs, k)
    state = core.FederatedState(server, clients, jnp.int32(0), key)
    deployed = jax.jit(functools.partial(outputs_of, algorithm, task, len(cohorts)))
    for round in range(len(cohorts)):
        plan = sampling.CohortPlan(count, len(cohorts[round]))
        state = reference_round(algorithm, plan, state, examples, len(cohorts))
        last = round == len(cohorts) - 1
        prefix = case.state.format(round=round, version=round + 1, **stages(meta, round))
        compare(case.server(state.server), theirs, prefix, last)
        of_clients = {k: case.client(state.clients[k]) for k in cohorts[round]}
        known = [
            k for k in of_clients if any(key.startswith(f"{prefix}client{k}/") for key in theirs)
        ]
        assert known or not last or not any(of_clients.values()), "the file has no client"
        for k in known:
            compare(of_clients[k], theirs, f"{prefix}client{k}/", last)
        if last or "{round}" in case.deployed:
            keys = {k: case.deployed.format(round=round, client=k) for k in range(count)}
            compared = {k: name for k, name in keys.items() if name in theirs}
            assert compared or not last, "the file has no outputs of the last round"
            for k, name in compared.items():
                inputs = data[f"client{k}/test_x"].astype(np.float64)
                rows = examples.of_client(jnp.int32(k))
                private = state.clients[k]
                if private is None:  # it has not taken part
                    profile = examples.profile(jnp.int32(k))
                    private = init.init_client(algorithm, state.server, profile, key)
                ours = deployed(state.server, private, rows, k, inputs)
                same(case.outputs(np.asarray(ours)), theirs[name])


def outputs_of(algorithm, task, length, server, private, data, client, inputs):
    """Returns the outputs of the model that a client would deploy."""
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(length), client)
    model = algorithm.personalize(server, private, data, context)
    if algorithm.adapt is not None:
        model = algorithm.adapt(model, inputs, jnp.ones(len(inputs), bool))
    if algorithm.predict is None:
        return task.predict(model, inputs)
    return algorithm.predict(model, inputs, context.key)


def compare(ours, theirs, prefix, last):
    """Compares what the file has of our models and arrays, which is all in the last round."""
    for name, tree in ours.items():
        pairs = trajectories.names_of(tree) if isinstance(tree, dict) else [(None, tree)]
        for path, array in pairs:
            key = f"{prefix}{name}" + (f"/{path}" if path else "")
            if last or key in theirs:
                same(np.asarray(array), theirs[key])


def same(ours, theirs):
    """Compares floats to the tolerance, and whole numbers exactly."""
    if np.issubdtype(theirs.dtype, np.integer):
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_convolution_of_factors():
    """The kernel, its outputs and all gradients, and the numbers of factors of nine kernels."""
    theirs = trajectories.read_recent("FedPara-conv.f64")
    for inputs, outputs, side, thousandths, rank, numbers in theirs["counts"].tolist():
        shape = (side, side, inputs, outputs)
        assert hadamard.rank_within(shape, thousandths / 1000) == rank
        assert hadamard.size(shape, rank) == numbers

    def of(prefix):
        """The factors `t`, `x` (outputs) and `y` (inputs) in our order of axes."""
        factors = {}
        for number in (1, 2):
            core, outputs, inputs = (theirs[f"{prefix}/W{number}/{name}"] for name in "TOI")
            factors[f"t{number}"] = core.transpose(2, 3, 0, 1)
            factors |= {f"x{number}": outputs.T, f"y{number}": inputs.T}
        return factors

    def images(name):
        return theirs[f"conv/{name}"].transpose(0, 2, 3, 1)

    def outputs_of(factors, bias, inputs):
        kernel = hadamard.compose(factors, 0.0)
        return convolution(inputs, kernel, padding="SAME", strides=1) + bias

    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (of("conv"), theirs["conv/bias"], images("input")))
        same(
            np.asarray(hadamard.compose(arguments[0], 0.0)), theirs["conv/W"].transpose(2, 3, 1, 0)
        )
        outputs, pull_back = jax.vjp(outputs_of, *arguments)
        same(np.asarray(outputs), images("output"))
        slopes = pull_back(jnp.asarray(images("cotangent")))
        wanted = of("conv/grad"), theirs["conv/grad/bias"], images("grad/input")
        jax.tree.map(lambda ours, other: same(np.asarray(ours), other), slopes, wanted)
