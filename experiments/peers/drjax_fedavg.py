"""DrJAX's FedAvg: a round as one program that maps over the clients of the cohort.

DrJAX does not support clients of different sizes, so all have the same number of batches. Examples
are stored on the host and transferred to the devices in each round.

Settings: 'one device', 'all devices' (one for each core). Needs drjax.
"""

from __future__ import annotations

import importlib.metadata
import os

import drjax
import jax
import jax.numpy as jnp
import numpy as np
import peer
from jax_network import build_network


def main() -> None:
    work = peer.read()
    if work.setting == "all devices":
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
        jax.set_mesh(jax.make_mesh((os.cpu_count(),), ("clients",), (jax.sharding.AxisType.Auto,)))
    init, apply = build_network(work)
    size, cohort_size = work.sizes[0], len(work.cohorts[0])
    if any(other != size for other in work.sizes) or size % work.batch_size:
        raise ValueError("DrJAX needs clients with the same number of full batches")

    def loss(parameters, images, labels):
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(apply(parameters, images)), labels[:, None], axis=-1
        )
        return -chosen.mean()

    def train(parameters, key, images, labels):
        order = jax.random.permutation(key, size).reshape(-1, work.batch_size)

        def step(parameters, rows):
            gradient = jax.grad(loss)(parameters, images[rows], labels[rows])
            return jax.tree.map(lambda p, g: p - work.learning_rate * g, parameters, gradient), None

        return jax.lax.scan(step, parameters, order)[0]

    @jax.jit
    @drjax.program(clients=cohort_size)
    def run_round(server, keys, images, labels):
        trained = drjax.map_fn(train, (drjax.broadcast(server), keys, images, labels))
        return drjax.reduce_mean(trained)

    clients = peer.examples(work)
    server, key = init(jax.random.key(0)), jax.random.key(1)

    def play(cohort):
        nonlocal server, key
        key, own = jax.random.split(key)
        images = np.stack([clients[client][0] for client in cohort])
        labels = np.stack([clients[client][1] for client in cohort]).astype(np.int32)
        server = run_round(server, jax.random.split(own, cohort_size), images, labels)
        jax.block_until_ready(server)

    peer.answer(importlib.metadata.version("drjax"), *peer.time_rounds(work, play))


if __name__ == "__main__":
    main()
