"""A seed is a whole number of at least 0: None would draw at random."""

import numpy as np
import pytest

from fad import DataError, data

pytestmark = pytest.mark.once

LABELS = np.arange(12) % 3
CLIENTS = data.Federated(
    {"x": np.ones((12, 2, 2), np.float32), "y": LABELS}, np.array([0, 5, 12])
)
CALLS = {
    "partition_iid": lambda seed: data.partition_iid(12, 2, seed=seed),
    "partition_dirichlet": lambda seed: data.partition_dirichlet(
        LABELS, 2, alpha=1.0, seed=seed
    ),
    "partition_shards": lambda seed: data.partition_shards(
        LABELS, 2, shards_per_client=2, seed=seed
    ),
    "partition_classes": lambda seed: data.partition_classes(
        LABELS, 3, classes_per_client=2, seed=seed
    ),
    "partition_sizes": lambda seed: data.partition_sizes(12, [5, 7], seed=seed),
    "partition_power_law": lambda seed: data.partition_power_law(
        12, 2, exponent=1.0, seed=seed
    ),
    "partition_lognormal": lambda seed: data.partition_lognormal(
        12, 2, sigma=1.0, seed=seed
    ),
    "partition_hierarchical": lambda seed: data.partition_hierarchical(
        LABELS // 2, LABELS, 2, alpha_coarse=1.0, alpha_fine=1.0, seed=seed
    ),
    "synthetic": lambda seed: data.synthetic(1.0, 1.0, clients=1, seed=seed),
    "synthetic_iid": lambda seed: data.synthetic_iid(clients=1, seed=seed),
    "Quadratics.random": lambda seed: data.Quadratics.random(1, seed=seed),
    "flip_labels": lambda seed: data.flip_labels(LABELS, fraction=0.5, seed=seed),
    "imbalance": lambda seed: data.imbalance(LABELS, [1, 1, 1], seed=seed),
    "rotate": lambda seed: data.rotate(CLIENTS, max_degrees=10, seed=seed),
    "add_noise": lambda seed: data.add_noise(CLIENTS, scale=0.1, seed=seed),
    "Federated.split": lambda seed: CLIENTS.split(0.5, 0.5, seed=seed),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("seed", [None, -1, 1.5])
def test_refuses(call, seed):
    match = rf"{call}\(seed=\.\.\.\): expected an integer of at least 0; got"
    with pytest.raises(DataError, match=match):
        CALLS[call](seed)


@pytest.mark.parametrize("call", CALLS)
def test_takes_whole_numbers_of_numpy(call):
    CALLS[call](np.int64(3))
