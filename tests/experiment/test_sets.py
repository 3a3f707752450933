"""The sets of configurations, from small stand-ins for what is downloaded."""

import dataclasses

import jax
import numpy as np
import pytest

from fad import ConfigError
from fad import data as fad_data
from fad.data import Federated
from fad.experiment import (
    BilevelConfig,
    DataConfig,
    ModelConfig,
    make_bilevel_task,
    make_task,
)
from fad.experiment._sets import read

pytestmark = pytest.mark.once


@pytest.fixture
def stored(monkeypatch):
    """Stand in for ``fad.data.load``: splits by name."""
    sets = {}

    def load(name, *, split=None, clients_by=None):
        splits = sets[name] if split is None else {split: sets[name][split]}
        if clients_by is None:
            return splits if split is None else splits[split]
        parts = list(splits.values())
        columns = {k: [part[k] for part in parts] for k in parts[0]}
        rows = {k: np.concatenate(x) for k, x in columns.items()}
        if clients_by != "split":
            return fad_data.group_by(rows, clients_by)
        sizes = [len(x) for x in next(iter(columns.values()))]
        return Federated(rows, np.cumsum([0, *sizes]), names=tuple(splits))

    monkeypatch.setattr(fad_data, "load", load)
    make_task.cache_clear()
    yield sets
    make_task.cache_clear()


def _linear(inputs, outputs, value=0.0):
    """The params of logistic regression, all weights alike."""
    kernel = np.full((inputs, outputs), value, np.float32)
    return {"Dense_0": {"kernel": kernel, "bias": np.zeros(outputs, np.float32)}}


def _images(n, side=4, classes=3):
    rng = np.random.default_rng(n)
    return {
        "image": rng.integers(0, 256, (n, side, side, 1), np.uint8),
        "label": np.arange(n) % classes,
    }


def _heart(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 13)).astype(np.float32)
    x[:, 2], x[:, 6], x[:, 4] = rng.integers(1, 5, n), rng.integers(0, 3, n), 200
    x[:, 12] = np.nan
    label = rng.integers(0, 2, n)
    return {"features": x, "label": label, "num": label, "hospital": label}


def test_images_keep_their_bytes_and_their_own_test_split(stored):
    stored["toy"] = {"train": _images(30), "test": _images(6)}
    source = read(DataConfig(set="toy", clients=3))
    assert source.clients.examples["x"].dtype == np.uint8
    assert source.clients.examples["y"].dtype == np.int32
    assert source.clients.num_clients == 1
    assert source.test is not None
    assert len(source.test["y"]) == 6
    assert (source.kind, source.outputs, source.scale) == ("classes", 3, 255.0)


def test_standardised_pixels_have_the_train_splits_moments(stored):
    train = _images(30)
    stored["toy"] = {"train": train, "test": _images(6)}
    data = DataConfig(set="toy", clients=3, standardise=True)
    moments = read(data).moments
    assert moments is not None
    pixels = train["image"] / 255
    np.testing.assert_allclose(moments, (pixels.mean(), pixels.std()), rtol=1e-6)
    task = make_task(data, ModelConfig(name="logistic"))
    weights = _linear(16, 3)
    weights["Dense_0"]["kernel"][:, 0] = 1
    rows = {"x": train["image"], "y": np.zeros(30, np.int32)}
    score = ((pixels - pixels.mean()) / pixels.std()).reshape(30, -1).sum(1)
    loss = np.log(1 + 2 * np.exp(-score))
    np.testing.assert_allclose(task.loss(weights, rows), loss, rtol=1e-4, atol=1e-6)


def test_standardise_is_for_pixels(stored):
    stored["toy"] = {"train": {"x": np.ones((4, 2)), "label": np.arange(4) % 2}}
    match = r"data\.standardise: 'toy' has no pixels; leave it out\. Columns of tables"
    with pytest.raises(ConfigError, match=match):
        read(DataConfig(set="toy", clients=2, standardise=True))
    match = r"data\.standardise: 'synthetic' has no pixels; leave it out"
    with pytest.raises(ConfigError, match=match):
        read(DataConfig(set="synthetic", clients=2, standardise=True))


def test_images_shrink_by_whole_blocks(stored):
    train = _images(30)
    stored["toy"] = {"train": train, "test": _images(6)}
    data = DataConfig(set="toy", clients=3, shrink=2, standardise=True)
    source = read(data)
    assert source.clients.examples["x"].shape == (30, 2, 2, 1)
    assert source.test is not None
    assert source.test["x"].shape == (6, 2, 2, 1)
    block = train["image"][:, :2, :2].mean((1, 2))
    np.testing.assert_array_equal(source.clients.examples["x"][:, 0, 0], block.round())
    assert source.moments is not None
    mean = source.clients.examples["x"].mean() / 255
    np.testing.assert_allclose(source.moments[0], mean, rtol=1e-6)
    match = r"data\.shrink = 3: the images of 'toy' are 4 by 4 pixels; expected a num"
    with pytest.raises(ConfigError, match=match):
        read(dataclasses.replace(data, shrink=3))
    stored["toy"] = {"train": {"x": np.ones((4, 2)), "label": np.arange(4) % 2}}
    with pytest.raises(ConfigError, match=r"data\.shrink: 'toy' has no images; leave"):
        read(DataConfig(set="toy", clients=2, shrink=2))


def test_fewer_test_examples_are_drawn_by_the_seed(stored):
    stored["toy"] = {"train": _images(30), "test": _images(60)}

    def tested(seed, **options):
        data = DataConfig(set="toy", clients=2, seed=seed, **options)
        return make_task(data, ModelConfig(name="logistic")).test

    whole, some, others = tested(0), *(tested(k, test_examples=20) for k in (0, 1))
    assert tested(0, test_examples=100)["y"].shape == whole["y"].shape == (60,)
    rows = {x.tobytes() for x in whole["x"]}
    for part in (some, others):
        assert len({x.tobytes() for x in part["x"]} & rows) == len(part["y"]) == 20
    assert (some["x"] != others["x"]).any()


def test_class_sizes_leave_the_server_its_examples(stored):
    stored["toy"] = {"train": _images(30), "test": _images(9)}
    data = DataConfig(set="toy", clients=2, class_sizes=(9, 4, 2))
    data = dataclasses.replace(data, validation_fraction=0.2)
    task = make_task(data, ModelConfig(name="logistic"))
    assert np.bincount(task.train.examples["y"]).tolist() == [8, 4, 2]
    assert task.validation is not None
    assert np.bincount(task.validation["y"]).tolist() == [2, 2, 2]
    assert np.bincount(task.test["y"]).tolist() == [3, 3, 3]


def test_class_sizes_and_two_levels_are_for_classes(stored):
    rows = {"x": np.ones((9, 2)), "target": np.arange(9.0)}
    stored["toy"] = {"train": rows}
    data, model = DataConfig(set="toy", clients=2), ModelConfig(name="logistic")
    match = (
        r"data\.class_sizes: expected one size per class; .* this set has no classes"
    )
    with pytest.raises(ConfigError, match=match):
        make_task(dataclasses.replace(data, class_sizes=(3,)), model)
    match = r"bilevel\.task: 'imbalance' learns classes, which 'toy' does not have"
    with pytest.raises(ConfigError, match=match):
        make_bilevel_task(data, model, BilevelConfig(task="imbalance"))


def test_pixels_reach_the_model_between_0_and_1(stored):
    stored["toy"] = {"train": _images(30), "test": _images(6)}
    data, model = DataConfig(set="toy", clients=3), ModelConfig(name="logistic")
    task = make_task(data, model)
    weights = _linear(16, 3, 1.0)
    white = {"x": np.full((1, 4, 4, 1), 255, np.uint8), "y": np.zeros(1, np.int32)}
    loss = task.metrics(weights, white)["loss"]
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)


def test_without_a_test_split_a_share_of_every_label_is_held_out(stored):
    stored["toy"] = {"train": _images(30)}
    task = make_task(DataConfig(set="toy", clients=3, test_fraction=0.4), ModelConfig())
    assert np.bincount(task.test["y"]).tolist() == [4, 4, 4]
    assert task.train.sizes.sum() == 18


def test_heart_disease_is_held_out_by_hospital_and_pooled_alike(stored):
    hospitals = {"cleveland": _heart(40, 0), "va": _heart(20, 1)}
    hospitals["va"]["features"][:5, 3] = np.nan  # incomplete rows
    hospitals["va"]["features"][5:10, 4] = 0  # cholesterol not taken
    stored["heart_disease_uci"] = hospitals
    natural = DataConfig(set="heart_disease_uci", partition="natural")
    pooled = DataConfig(set="heart_disease_uci", partition="iid", clients=1)
    tasks = [make_task(d, ModelConfig(name="logistic")) for d in (natural, pooled)]
    assert tasks[0].train.names == ("cleveland", "va")
    assert tasks[0].train.sizes.tolist() == [32, 12]
    assert not np.array_equal(tasks[0].test["y"], np.sort(tasks[0].test["y"]))
    np.testing.assert_array_equal(tasks[0].test["x"], tasks[1].test["x"])
    assert tasks[1].train.sizes.tolist() == [44]
    x = tasks[0].train.examples["x"]
    assert x.shape == (44, 8 + 3 + 2)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x[:, 3], 0, atol=1e-5)  # all 200, the mean filled in
    auc = tasks[0].set_metrics["auc"]
    assert auc(_linear(13, 2), tasks[0].test) == 0.5


def test_omniglot_is_shrunk_and_split_by_writer(stored):
    rows = _images(12, side=105) | {"writer": np.repeat([7, 3], 6)}
    stored["omniglot_writers"] = {"train": rows}
    source = read(DataConfig(set="omniglot_writers", partition="natural"))
    assert source.clients.examples["x"].shape == (12, 35, 35, 1)
    assert source.clients.examples["x"].dtype == np.uint8
    assert source.clients.sizes.tolist() == [6, 6]
    block = rows["image"][rows["writer"] == 3][0, :3, :3, 0]
    assert source.clients.examples["x"][0, 0, 0, 0] == 255 - round(float(block.mean()))


def test_text_is_held_out_at_the_end_of_every_role(stored):
    text = np.array([b"to be or not " * 3, b"the rest is silence " * 3], object)
    play = b"A:\n%b\n\nB:\n%b" % tuple(text)
    parts = {"train": play[:40], "test": play[40:]}
    stored["tiny_shakespeare"] = {
        name: {"text": np.array([part], object)} for name, part in parts.items()
    }
    data = DataConfig(
        set="tiny_shakespeare", partition="natural", length=5, test_fraction=0.25
    )
    model = ModelConfig(name="char_lstm", width=4, layers=1)
    task = make_task(data, model)
    assert task.train.names == ("A", "B")
    whole = fad_data.next_character(
        Federated({"text": text}, np.array([0, 1, 2])), length=5
    )
    kept = task.train.client(0)["x"]
    np.testing.assert_array_equal(kept, whole.client(0)["x"][: len(kept)])
    params = task.init(jax.random.key(0))
    values = task.metrics(params, task.test)
    assert values["loss"].shape == (len(task.test["y"]),)
    # Padding counts for nothing.
    padded = {"x": task.test["x"][:1], "y": np.zeros((1, 5), np.int32)}
    assert float(task.loss(params, padded)[0]) == 0


def test_real_values_have_a_squared_error(stored):
    x = np.random.default_rng(0).random((20, 3))
    stored["toy"] = {"train": {"x": x, "target": x.sum(1)}}
    task = make_task(DataConfig(set="toy", clients=2), ModelConfig(name="logistic"))
    weights = _linear(3, 1)
    np.testing.assert_allclose(
        task.loss(weights, task.test), 0.5 * task.test["y"] ** 2, rtol=1e-6
    )
    assert not task.set_metrics


def test_synthetic_has_clients_of_its_own():
    data = DataConfig(set="synthetic", partition="natural", alpha=1.0, clients=4)
    task = make_task(data, ModelConfig(name="logistic"))
    assert task.train.num_clients == 4


def test_no_natural_clients():
    data = DataConfig(set="digits", partition="natural")
    message = r"'digits' has no clients of its own.*clients_by"
    with pytest.raises(ConfigError, match=message):
        read(data)


def test_nothing_to_learn_from(stored):
    stored["odd"] = {"train": {"audio": np.zeros((3, 5))}}
    message = "'odd', whose columns are audio; expected image and label, text, or x"
    with pytest.raises(ConfigError, match=message):
        read(DataConfig(set="odd", clients=1))


def test_no_coarse_labels():
    data = DataConfig(partition="hierarchical", clients=2)
    with pytest.raises(ConfigError, match="coarse_label, which 'digits' does not have"):
        make_task(data, ModelConfig())


def test_hierarchical(stored):
    rows = _images(40, classes=4)
    stored["toy"] = {"train": rows | {"coarse_label": rows["label"] // 2}}
    data = DataConfig(set="toy", partition="hierarchical", clients=4)
    task = make_task(data, ModelConfig())
    assert task.train.sizes.tolist() == [8] * 4
    assert set(task.train.examples) == {"x", "y"}


def test_label_noise_is_at_the_training_labels_alone():
    clean, noisy = (
        make_task(DataConfig(clients=2, label_noise=share), ModelConfig())
        for share in (0.0, 0.5)
    )
    np.testing.assert_array_equal(clean.test["y"], noisy.test["y"])
    differ = clean.train.examples["y"] != noisy.train.examples["y"]
    assert differ.mean() == pytest.approx(0.5, abs=1e-3)


def test_noise_at_a_share_of_the_clients():
    data = DataConfig(clients=10, seed=1, validation_fraction=0.1)
    spoilt = dataclasses.replace(data, label_noise=0.5, noisy_clients=0.3)
    clean, noisy = (make_task(d, ModelConfig()) for d in (data, spoilt))
    differ = clean.train.examples["y"] != noisy.train.examples["y"]
    by_client = [x.mean() for x in np.split(differ, clean.train.offsets[1:-1])]
    shares = sorted(float(x) for x in by_client)
    assert shares == pytest.approx([0] * 7 + [0.5] * 3, abs=0.01)
    assert clean.validation is not None
    assert noisy.validation is not None
    np.testing.assert_array_equal(clean.validation["y"], noisy.validation["y"])


def test_the_server_holds_a_share_of_the_training_examples():
    whole, less = (
        make_task(DataConfig(clients=4, validation_fraction=share), ModelConfig())
        for share in (0.0, 0.1)
    )
    assert whole.validation is None
    assert less.validation is not None
    held = len(less.validation["y"])
    assert held == pytest.approx(0.1 * len(whole.train.examples["y"]), abs=1)
    assert held + len(less.train.examples["y"]) == len(whole.train.examples["y"])
    np.testing.assert_array_equal(whole.test["x"], less.test["x"])
    assert set(np.unique(less.validation["y"])) == set(range(10))


def test_label_noise_needs_classes(stored):
    x = np.random.default_rng(0).random((20, 3))
    stored["toy"] = {"train": {"x": x, "target": x.sum(1)}}
    data = DataConfig(set="toy", clients=2, label_noise=0.1)
    with pytest.raises(ConfigError, match="label_noise: this set has no class labels"):
        make_task(data, ModelConfig(name="logistic"))


def test_a_set_of_a_test_split_alone_is_held_out_of_the_clients(stored):
    rows = _images(40)
    rows["image"][:, 0, 0, 0] = np.arange(40)  # tells the rows apart
    stored["toy"] = {"test": rows}
    task = make_task(DataConfig(set="toy", clients=2), ModelConfig())
    train, test = (x[:, 0, 0, 0] for x in (task.train.examples["x"], task.test["x"]))
    assert sorted([*train, *test]) == list(range(40))


def test_synthetic_is_the_same_however_it_is_shared():
    model = ModelConfig(name="logistic")
    natural = make_task(DataConfig(set="synthetic", partition="natural"), model)
    pooled = make_task(DataConfig(set="synthetic", clients=1), model)
    assert natural.train.num_clients == 30
    assert natural.train.sizes.sum() == pooled.train.sizes.sum()
    np.testing.assert_array_equal(natural.test["x"], pooled.test["x"])


def test_missing_cholesterol_is_the_mean_of_the_training_rows(stored):
    heart = _heart(60, 0)
    heart["features"][:, 4] = np.random.default_rng(0).uniform(150, 300, 60)
    heart["features"][::3, 4] = 0
    stored["heart_disease_uci"] = {"cleveland": heart}
    config = DataConfig(set="heart_disease_uci", partition="natural")
    task = make_task(config, ModelConfig(name="logistic"))
    train, test = task.train.examples["x"][:, 3], task.test["x"][:, 3]
    assert np.count_nonzero(train == 0) + np.count_nonzero(test == 0) == 20
    np.testing.assert_allclose(train[train != 0].mean(), 0, atol=1e-6)


def test_a_version_does_not_hide_the_clients(stored):
    rows = _images(12, side=105) | {"writer": np.repeat([7, 3], 6)}
    stored["omniglot_writers:1.0.0"] = {"train": rows}
    source = read(DataConfig(set="omniglot_writers:1.0.0", partition="natural"))
    assert source.clients.num_clients == 2
    assert source.clients.examples["x"].shape[1:] == (35, 35, 1)


def test_clients_are_not_by_what_is_learnt(stored):
    stored["toy"] = {"train": _images(9) | {"user": np.arange(9) % 2}}
    data = DataConfig(set="toy", partition="natural", clients_by="label")
    message = "'label' is what is learnt and cannot.*Choose one of split, user"
    with pytest.raises(ConfigError, match=message):
        read(data)


def test_a_test_split_is_not_a_share():
    with pytest.raises(ConfigError, match="'digits' has a test split of its own"):
        make_task(DataConfig(clients=2, test_fraction=0.3), ModelConfig())


def test_left_out_clients_are_not_in_the_test(stored):
    user = np.array([0] * 4 + [1] * 16)
    rows = _images(20) | {"label": np.arange(20) % 2, "user": user}
    stored["toy"] = {"train": rows}
    data = DataConfig(set="toy", partition="natural", clients_by="user", min_examples=5)
    task = make_task(data, ModelConfig())
    assert task.train.num_clients == 1
    assert task.train.sizes.sum() + len(task.test["y"]) == 16


def test_a_transformer_is_as_long_as_the_windows(stored):
    text = np.array([b"to be or not " * 12], object)
    stored["toy"] = {"train": {"text": text}}
    data = DataConfig(set="toy", clients=1, length=100, test_fraction=0.5)
    model = ModelConfig(name="char_transformer", width=4, layers=1)
    task = make_task(data, model)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert any(100 in leaf.shape for leaf in jax.tree.leaves(shapes))


def test_a_length_needs_text():
    with pytest.raises(ConfigError, match="length: this set has no text to cut"):
        make_task(DataConfig(clients=2, length=5), ModelConfig())
