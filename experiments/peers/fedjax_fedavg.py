"""FedJAX's FedAvg: a jitted step for each batch, clients one after another or on all devices.

FedJAX calls three functions that JAX has removed, and its backend 'pmap' expects an older layout of
shards; both are restored here.

Settings: 'jit', 'jit, one thread' (set by the environment), 'pmap' (one device for each core).
Needs fedjax.
"""

from __future__ import annotations

import importlib.metadata
import os

import jax
import numpy as np
import peer
from jax_network import build_network


def restore_removed_names() -> None:
    """Restores the functions of JAX that FedJAX calls."""

    def stack(leaves, devices):
        mesh = jax.sharding.Mesh(np.array(devices), ("devices",))
        return jax.device_put(np.stack(leaves), jax.NamedSharding(mesh, jax.P("devices")))

    def put_sharded(shards, devices):
        return jax.tree.map(lambda *leaves: stack(leaves, devices), *shards)

    def put_replicated(values, devices):
        return jax.tree.map(lambda leaf: stack([leaf] * len(devices), devices), values)

    jax.tree_map = jax.tree.map
    jax.device_put_sharded, jax.device_put_replicated = put_sharded, put_replicated


def pmap_backend():
    """Returns FedJAX's backend, with the additional device axis of its results removed."""
    from fedjax.core.for_each_client import ForEachClientPmapBackend

    class Backend(ForEachClientPmapBackend):
        def __call__(self, *functions):
            run = super().__call__(*functions)

            def run_and_drop_axis(shared, clients):
                for client, output, steps in run(shared, clients):
                    yield client, jax.tree.map(lambda leaf: leaf[0], output), steps

            return run_and_drop_axis

    return Backend()


def main() -> None:
    work = peer.read()
    if work.setting == "pmap":
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    restore_removed_names()
    import fedjax

    init, apply = build_network(work)
    model = fedjax.Model(
        init=init,
        apply_for_train=lambda parameters, batch, key: apply(parameters, batch["x"]),
        apply_for_eval=lambda parameters, batch: apply(parameters, batch["x"]),
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(
            batch["y"], logits
        ),
        eval_metrics={},
    )
    backend = pmap_backend() if work.setting == "pmap" else "jit"
    fedjax.set_for_each_client_backend(backend)
    fedavg = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(work.learning_rate),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch_size, num_epochs=1),
    )
    clients = {
        client: fedjax.ClientDataset({"x": images, "y": labels.astype(np.int32)})
        for client, (images, labels) in peer.examples(work).items()
    }
    state = fedavg.init(model.init(jax.random.PRNGKey(0)))
    key = jax.random.PRNGKey(1)

    def play(cohort):
        nonlocal state, key
        key, *keys = jax.random.split(key, len(cohort) + 1)
        pairs = zip(cohort, keys, strict=True)
        state, _ = fedavg.apply(state, [(client, clients[client], own) for client, own in pairs])
        jax.block_until_ready(state.params)

    peer.answer(importlib.metadata.version("fedjax"), *peer.time_rounds(work, play))


if __name__ == "__main__":
    main()
