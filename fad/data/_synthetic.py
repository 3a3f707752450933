"""Synthetic(alpha, beta): logistic regression with a model and inputs per client."""

from typing import Any

import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import natural, positive
from fad.data._federated import Federated


def synthetic(
    alpha: float,
    beta: float,
    *,
    clients: int = 30,
    features: int = 60,
    classes: int = 10,
    seed: int = 0,
) -> Federated:
    """Make clients whose labels follow a linear model of their own.

    Client ``k`` draws, in this order::

        n_k     = int(lognormal(4, 2)) + 50       its size, heavy-tailed
        u_k     ~ N(0, alpha),  B_k ~ N(0, beta)
        v_k     ~ N(B_k, 1)                       [features]
        W_k     ~ N(u_k, 1)                       [features, classes]
        b_k     ~ N(u_k, 1)                       [classes]
        x       ~ N(v_k, diag(j ** -1.2)),  j = 1..features
        y       = argmax(x W_k + b_k)

    ``beta`` makes the clients' inputs differ. ``alpha`` moves a client's model by the
    same amount for every class, which argmax and softmax do not see: it changes no x
    and no y. It is here because it is part of the published generator and of the name.
    The models differ in their ``N(., 1)`` entries whatever alpha is, so that
    ``synthetic(0, 0)`` is heterogeneous too; ``synthetic_iid`` is not.

    Both are standard deviations, as in the published code, while the paper can be read
    as giving variances: at a beta of 0 or 1 that is the same.

    A client depends on the seed and on its own number, not on how many there are.
    A label belongs to its x as held, after rounding to float32.

    Args:
        alpha: The standard deviation of the models' means, at least 0; see above.
        beta: The standard deviation of the inputs' means, at least 0.
        clients: The number of clients.
        features: The number of inputs.
        classes: The number of labels.
        seed: The seed of everything.

    Returns:
        The clients, with ``x: float32 [N, features]`` and ``y: int32 [N]``. They are
        not split into train and test.

    Raises:
        DataError: If alpha or beta is negative or not finite, or a count is not a
            positive integer.

    Example:
        >>> data = synthetic(1.0, 1.0, clients=3)
        >>> data.examples["x"].shape[1], int(data.sizes.min()) >= 50
        (60, True)

    Source: T. Li et al., Federated Optimization in Heterogeneous Networks, 2020, the
    synthetic data of the experiments (https://arxiv.org/abs/1812.06127).
    """
    call = "synthetic"
    alpha, beta = _deviation(call, "alpha", alpha), _deviation(call, "beta", beta)
    features, classes = _shape(call, features, classes)
    drawn = []
    for rng in _streams(call, clients, seed):
        size = _size(rng)
        model_mean, input_mean = rng.normal(0, alpha), rng.normal(0, beta)
        center = rng.normal(input_mean, 1, features)
        weights = rng.normal(model_mean, 1, (features, classes))
        bias = rng.normal(model_mean, 1, classes)
        drawn.append(_examples(rng, size, center, weights, bias))
    return _federated(drawn)


def synthetic_iid(
    *, clients: int = 30, features: int = 60, classes: int = 10, seed: int = 0
) -> Federated:
    """Make clients of unequal sizes that share one linear model and one law of x.

    It is ``synthetic`` with the entries of one ``W`` and ``b`` from N(0, 1) for all
    clients and inputs around zero: the homogeneous end of the same family.

    Args:
        clients: The number of clients.
        features: The number of inputs.
        classes: The number of labels.
        seed: The seed of everything.

    Returns:
        The clients, with ``x: float32 [N, features]`` and ``y: int32 [N]``.

    Raises:
        DataError: If a count is not a positive integer.

    Example:
        >>> data = synthetic_iid(clients=3, features=5, classes=2)
        >>> data.num_clients, data.examples["x"].shape[1]
        (3, 5)

    Source: T. Li et al., Federated Optimization in Heterogeneous Networks, 2020, the
    synthetic data of the experiments (https://arxiv.org/abs/1812.06127).
    """
    call = "synthetic_iid"
    features, classes = _shape(call, features, classes)
    streams = _streams(call, clients, seed)
    # The root of the clients' streams: independent of every one of them.
    shared = np.random.default_rng(seed)
    weights = shared.normal(0, 1, (features, classes))
    bias = shared.normal(0, 1, classes)
    center = np.zeros(features)
    return _federated(
        [_examples(rng, _size(rng), center, weights, bias) for rng in streams]
    )


def _streams(call: str, clients: int, seed: int) -> list[np.random.Generator]:
    root = np.random.SeedSequence(natural(call, "seed", seed))
    children = root.spawn(positive(call, "clients", clients))
    return [np.random.default_rng(child) for child in children]


def _size(rng: np.random.Generator) -> int:
    return int(rng.lognormal(4, 2)) + 50


def _examples(
    rng: np.random.Generator,
    size: int,
    center: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
) -> dict[str, np.ndarray]:
    """Draw one client's rows around ``center`` and label them."""
    spread = np.arange(1, len(center) + 1) ** -0.6
    x = rng.normal(center, spread, (size, len(center))).astype(np.float32)
    scores = x.astype(np.float64) @ weights + bias
    return {"x": x, "y": scores.argmax(axis=1).astype(np.int32)}


def _federated(drawn: list[dict[str, np.ndarray]]) -> Federated:
    examples = {name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]}
    return Federated(examples, np.cumsum([0, *(len(one["y"]) for one in drawn)]))


def _shape(call: str, features: int, classes: int) -> tuple[int, int]:
    return positive(call, "features", features), positive(call, "classes", classes)


def _deviation(call: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 <= number < np.inf:
        given = value if isinstance(value, int | float) else describe(value)
        raise DataError(
            f"fad.data.{call}({name}=...): expected a standard deviation, finite and "
            f"at least 0; got {given}."
        )
    return number
