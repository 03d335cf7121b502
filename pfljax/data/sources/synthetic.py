"""Synthetic(alpha, beta) of the FedProx paper: logistic models and inputs that differ by client."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.data.examples import Examples

_FEATURES, _CLASSES = 60, 10


def load_synthetic(
    data_dir: str = "",
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    clients: int = 30,
    identical: bool = False,
    seed: int = 0,
) -> Examples:
    """Returns generated clients with different models, inputs and sizes.

        y = argmax softmax(W_k x + b_k),  x ~ N(v_k, S),  S_jj = j^-1.2
        W_k, b_k ~ N(u_k, 1),  u_k ~ N(0, alpha);  v_k ~ N(B_k, 1),  B_k ~ N(0, beta)

    Args:
      data_dir: Ignored.
      alpha: The variance between the clients' models; with 0, their means agree.
      beta: The variance between the means of the clients' inputs.
      clients: Number of clients.
      identical: Whether all clients have the same model and input distribution, the paper's
        Synthetic_IID.
      seed: The seed of all random numbers.

    Returns:
      Examples with inputs `[n, 60]` float32 in 10 classes. A client has 50 examples plus a
      log-normal number of further ones, `exp(4 + 2 N(0, 1))`.

    Raises:
      UserError: an option is invalid.

    Notes:
      In N(0, alpha), alpha is the variance, as in the paper. Code that passes alpha to NumPy's
      normal uses it as a standard deviation; for 0 and 1 there is no difference. The sizes, which
      the paper calls a power law, are those of common implementations.

    References:
      Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
      Networks", 2020, https://arxiv.org/abs/1812.06127.
      Shamir, Srebro, Zhang, "Communication-Efficient Distributed Optimization using an Approximate
      Newton-type Method", 2014, https://arxiv.org/abs/1312.7853.

    >>> load_synthetic(clients=3).inputs.shape[1]
    60
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        checks.number(f"data.options.synthetic.{name}", value, 0, 1e6)
    checks.whole("data.options.synthetic.clients", clients, 1, 1_000_000)
    rng = np.random.default_rng(checks.whole("data.options.synthetic.seed", seed, 0))
    spread = np.arange(1, _FEATURES + 1) ** -0.6
    shared_weights = rng.normal(size=(_FEATURES, _CLASSES))
    shared_bias = rng.normal(size=_CLASSES)
    inputs, labels, owners = [], [], []
    for client in range(clients):
        size = int(rng.lognormal(4, 2)) + 50
        center = rng.normal(0, np.sqrt(alpha))
        weights = rng.normal(center, 1, (_FEATURES, _CLASSES))
        bias = rng.normal(center, 1, _CLASSES)
        means = rng.normal(rng.normal(0, np.sqrt(beta)), 1, _FEATURES)
        if identical:
            weights, bias, means = shared_weights, shared_bias, np.zeros(_FEATURES)
        values = rng.normal(means, spread, (size, _FEATURES))
        inputs.append(values.astype(np.float32))
        labels.append(np.argmax(values @ weights + bias, axis=1).astype(np.int32))
        owners.append(np.full(size, client, np.int32))
    name = "synthetic_iid" if identical else f"synthetic_{alpha:g}_{beta:g}"
    targets, owned = np.concatenate(labels), np.concatenate(owners)
    return Examples(name, np.concatenate(inputs), targets, _CLASSES, owners=owned)
