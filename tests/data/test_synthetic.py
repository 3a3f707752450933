import numpy as np
import pytest

from fad.data import synthetic, synthetic_iid


def draw_by_hand(alpha, beta, client, seed, features=60, classes=10):
    """Follow the paper, one number at a time where that is possible."""
    child = np.random.SeedSequence(seed).spawn(client + 1)[client]
    rng = np.random.default_rng(child)
    size = 50 + int(np.exp(4 + 2 * rng.standard_normal()))
    u = alpha * rng.standard_normal()
    mean = beta * rng.standard_normal()
    v = [mean + rng.standard_normal() for _ in range(features)]
    w = [[u + rng.standard_normal() for _ in range(classes)] for _ in range(features)]
    b = [u + rng.standard_normal() for _ in range(classes)]
    x = np.zeros((size, features), np.float32)
    for row in x:
        for j in range(features):
            row[j] = v[j] + np.sqrt((j + 1) ** -1.2) * rng.standard_normal()
    return x, np.array(v), np.array(w), np.array(b)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.0)])
def test_is_the_published_law(alpha, beta):
    data = synthetic(alpha, beta, clients=4, seed=3)
    for k in range(4):
        x, v, w, b = draw_by_hand(alpha, beta, k, seed=3)
        held = data.client(k)
        np.testing.assert_allclose(held["x"], x, rtol=1e-5, atol=1e-6)
        for row, label in zip(held["x"], held["y"], strict=True):
            scores = [sum(row.astype(float) * w[:, c]) + b[c] for c in range(10)]
            assert label == np.argmax(scores)
        spread = np.arange(1.0, 61.0) ** -0.6 / np.sqrt(len(x))
        assert np.abs((held["x"].mean(axis=0) - v) / spread).max() < 5


def test_covariance():
    data = synthetic(0, 0, clients=30)
    x = data.client(int(data.sizes.argmax()))["x"]
    covariance = np.cov(x, rowvar=False)
    np.testing.assert_allclose(
        covariance, np.diag(np.arange(1.0, 61.0) ** -1.2), atol=5 / np.sqrt(len(x))
    )


def test_shapes_and_sizes():
    data = synthetic(1, 1)
    assert data.num_clients == 30
    assert data.examples["x"].shape == (data.sizes.sum(), 60)
    assert data.examples["x"].dtype == np.float32
    assert data.examples["y"].dtype == np.int32
    assert set(np.unique(data.examples["y"])) <= set(range(10))
    assert data.sizes.min() >= 50


def test_sizes_are_log_normal():
    sizes = synthetic_iid(clients=2000, features=1, classes=1).sizes - 50
    assert sizes.min() >= 0
    # int() rounds down, which only the small half would notice.
    large = np.log(sizes[sizes > np.exp(4)] + 0.5)
    assert abs(len(large) / len(sizes) - 0.5) < 0.05
    assert abs(np.quantile(large, 0.6827) - 6) < 0.2


def test_other_features_and_classes():
    data = synthetic(1, 1, clients=20, features=5, classes=3)
    assert data.examples["x"].shape[1] == 5
    assert set(np.unique(data.examples["y"])) == {0, 1, 2}


@pytest.mark.parametrize("make", [lambda **k: synthetic(1, 1, **k), synthetic_iid])
def test_a_client_depends_on_seed_and_number_alone(make):
    few, many, other = make(clients=3), make(clients=8), make(clients=3, seed=1)
    for k in range(3):
        for name in ("x", "y"):
            np.testing.assert_array_equal(few.client(k)[name], many.client(k)[name])
    assert not np.array_equal(few.sizes, other.sizes)
    assert len(np.unique(many.sizes)) > 1


def test_beta_makes_inputs_differ():
    def spread(beta):
        data = synthetic(0, beta, clients=40)
        return np.std([data.client(k)["x"].mean() for k in range(40)])

    assert spread(0) < spread(1) < spread(4)
    assert abs(spread(0) - 60**-0.5) < 0.05
    assert abs(spread(4) - 4) < 1.5


def test_alpha_changes_no_example():
    """It adds the same number to the scores of all classes."""
    without, with_alpha = synthetic(0, 1, clients=10), synthetic(3, 1, clients=10)
    for name in ("x", "y"):
        np.testing.assert_array_equal(without.examples[name], with_alpha.examples[name])


def label_variance(data):
    """Mean over labels of the variance of their share between the clients."""
    shares = [
        np.bincount(data.client(k)["y"], minlength=10) / data.sizes[k]
        for k in range(data.num_clients)
    ]
    return np.var(shares, axis=0).mean()


def test_the_iid_clients_share_model_and_inputs():
    data = synthetic_iid(clients=30)
    assert data.sizes.min() >= 50
    assert label_variance(data) < 0.01 < label_variance(synthetic(0, 0))
    x, y = data.examples["x"].astype(float), data.examples["y"]
    shared = np.random.default_rng(0)
    w, b = shared.normal(0, 1, (60, 10)), shared.normal(0, 1, 10)
    np.testing.assert_array_equal(y, (x @ w + b).argmax(axis=1))
    spread = np.arange(1.0, 61.0) ** -0.6
    assert np.abs(x.mean(axis=0) / spread * np.sqrt(len(x))).max() < 5


@pytest.mark.parametrize("value", [-0.1, np.inf, np.nan, "one", None])
def test_refuses_deviations(value):
    match = r"synthetic\({}=\.\.\.\): expected a standard deviation, finite and at lea"
    with pytest.raises(ValueError, match=match.format("alpha")):
        synthetic(value, 1)
    with pytest.raises(ValueError, match=match.format("beta")):
        synthetic(1, value)


@pytest.mark.parametrize("name", ["clients", "features", "classes"])
def test_refuses_counts(name):
    match = rf"\({name}=\.\.\.\): expected a positive integer; got 0"
    with pytest.raises(ValueError, match="synthetic" + match):
        synthetic(1, 1, **{name: 0})
    with pytest.raises(ValueError, match="synthetic_iid" + match):
        synthetic_iid(**{name: 0})
