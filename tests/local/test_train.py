"""Local training, against a per-client loop in NumPy and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad.local import Batches, client_key, evaluate, train
from tests.subjects import assert_same, gather

SIZES = (0, 1, 7)  # examples of each client
BATCH, STEPS, FEATURES = 3, 3, 2


def _adam(lr):
    """Return Adam; optax's own code needs the promotion that the tests forbid."""
    adam = optax.adam(lr)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


OPTIMIZERS = {
    "sgd": lambda lr: optax.sgd(lr),
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adam": _adam,
    "clipped_decay": lambda lr: optax.chain(
        optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.1), optax.sgd(lr)
    ),
}
once = pytest.mark.once
optimizers = pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "adam",
        pytest.param("momentum", marks=once),
        pytest.param("clipped_decay", marks=once),
    ],
)


def _loss(params, examples):
    scores = jnp.tanh(examples["x"] @ params["w"] + params["b"])
    return (scores - examples["y"]) ** 2


def _rows(size, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(size, FEATURES)), random.normal(size=size)


def _batches(size, client, dtype=None):
    """Return one client's rows in padded batches; the padding is not zero."""
    x, y = _rows(size, client)
    padding = STEPS * BATCH - size
    pad = lambda v: np.concatenate([v, np.full((padding, *v.shape[1:]), 9.0)])  # noqa: E731
    dtype = dtype or jnp.result_type(float)
    examples = {
        "x": jnp.asarray(pad(x).reshape(STEPS, BATCH, FEATURES), dtype),
        "y": jnp.asarray(pad(y).reshape(STEPS, BATCH), dtype),
    }
    mask = (np.arange(STEPS * BATCH) < size).reshape(STEPS, BATCH)
    return Batches(examples, jnp.asarray(mask), jnp.int32(client))


def _cohort(clients=(0, 1, 2)):
    stacked = [_batches(SIZES[i], i) for i in clients]
    return fad.AtClients(jax.tree.map(lambda *v: jnp.stack(v), *stacked))


def _params():
    return {"w": jnp.asarray(np.array([0.3, -0.2])), "b": jnp.asarray(np.array(0.1))}


def _reference(params, size, client, optimizer):
    """Train on unpadded rows, batch after batch."""
    x, y = (jnp.asarray(v) for v in _rows(size, client))
    state, losses = optimizer.init(params), []
    for i in range(0, size, BATCH):
        rows = {"x": x[i : i + BATCH], "y": y[i : i + BATCH]}
        losses.append(_loss(params, rows))
        grads = jax.grad(lambda p, r=rows: _loss(p, r).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, jnp.concatenate(losses).mean() if losses else 0.0, len(losses)


def _train(params, cohort, optimizer, **options):
    def work(p, b):
        return train(p, b, loss=_loss, optimizer=optimizer, **options)

    program = lambda p, c: fad.map(work, fad.broadcast(p), c)  # noqa: E731
    return fad.program(program)(params, cohort)


@pytest.mark.usefixtures("x64")
@optimizers
def test_a_cohort_trains_like_a_loop_over_its_clients(name):
    optimizer, params = OPTIMIZERS[name](0.1), _params()
    result = gather(jax.jit(lambda p, c: _train(p, c, optimizer))(params, _cohort()))
    for i, size in enumerate(SIZES):
        mine = jax.tree.map(lambda v, i=i: v[i], result)
        expected, loss, steps = _reference(params, size, i, optimizer)
        assert_same(mine.params, expected)
        assert_same(mine.delta, jax.tree.map(jnp.subtract, expected, params))
        np.testing.assert_allclose(mine.loss, loss, rtol=1e-12)
        assert (mine.num_examples, mine.num_steps) == (size, steps)
    assert (result.num_examples.dtype, result.num_steps.dtype) == ("float32", "int32")


def _by_lr(params, lr, cohort, optimizer):
    result = _train(params, cohort, optimizer(lr))
    mean = fad.program(fad.weighted_mean)(result.params, result.num_examples)
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda v: jnp.sum(v**2), mean))


def _plain_by_lr(params, lr, cohort, optimizer):
    del cohort
    trained = [_reference(params, s, i, optimizer(lr))[0] for i, s in enumerate(SIZES)]
    weights = jnp.asarray(np.array(SIZES)) / sum(SIZES)
    mean = jax.tree.map(lambda *v: jnp.tensordot(weights, jnp.stack(v), 1), *trained)
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda v: jnp.sum(v**2), mean))


@pytest.mark.usefixtures("x64")
@optimizers
def test_gradient_by_params_and_the_clients_learning_rate(name):
    args = _params(), jnp.asarray(np.array(0.1)), _cohort()
    grads = [
        jax.grad(lambda *a, f=f: f(*a, OPTIMIZERS[name]), (0, 1))(*args)
        for f in (jax.jit(_by_lr, static_argnums=3), _plain_by_lr)
    ]
    assert_same(*grads, tol=1e-9)


@optimizers
@pytest.mark.once
def test_an_empty_client_changes_nothing(name):
    def delta(params, lr):
        batches = _batches(0, 0)
        return train(params, batches, loss=_loss, optimizer=OPTIMIZERS[name](lr))

    result = delta(_params(), 0.1)
    assert_same(result.params, _params(), tol=0)
    assert_same(result.delta, jax.tree.map(jnp.zeros_like, _params()), tol=0)
    assert (result.loss, result.num_examples, result.num_steps) == (0, 0, 0)
    total = lambda *a: jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, delta(*a).params))  # noqa: E731
    by_params, by_lr = jax.grad(total, (0, 1))(_params(), 0.1)
    assert_same(by_params, jax.tree.map(jnp.ones_like, _params()))
    assert by_lr == 0


@optimizers
@pytest.mark.once
def test_gradients_pass_through_batches_of_padding(name):
    def total(params):
        result = train(
            params, _batches(1, 1), loss=_loss, optimizer=OPTIMIZERS[name](0.1)
        )
        return jnp.sum(result.params["w"])

    assert jnp.isfinite(jax.grad(total)(_params())["w"]).all()


@pytest.mark.once
def test_padded_rows_carry_no_gradient():
    batches = _batches(7, 2)

    def total(examples):
        moved = batches._replace(examples=examples)
        result = train(_params(), moved, loss=_loss, optimizer=optax.sgd(0.1))
        return jnp.sum(result.params["w"]) + result.loss

    gradient = jax.grad(total)(batches.examples)
    assert not jnp.any(jnp.where(batches.mask, 0.0, gradient["y"]))
    assert jnp.all(jnp.where(batches.mask, gradient["y"], 1.0))


@pytest.mark.once
def test_the_whole_cohort_may_be_empty():
    cohort = _cohort([0, 0])
    gradient = jax.grad(lambda p: _by_lr(p, 0.1, cohort, optax.sgd))(_params())
    assert_same(gradient, jax.tree.map(jnp.zeros_like, _params()))


def _noisy_loss(params, examples, key):
    noise = jax.random.normal(key, examples["y"].shape)
    return (params["b"] + noise - examples["y"]) ** 2


@pytest.mark.once
def test_a_random_loss_does_not_depend_on_the_cohort():
    @fad.program
    def run(key, cohort):
        def work(b):
            own = client_key(key, b.client)
            done = train(
                _params(), b, loss=_noisy_loss, optimizer=optax.sgd(0.1), key=own
            )
            return done.params["b"], evaluate(_params(), b, loss=_noisy_loss, key=own)[
                0
            ]

        return fad.map(work, cohort)

    key = jax.random.key(3)
    trained, mean = gather(run(key, _cohort([1, 2])))
    trained_again, mean_again = gather(run(key, _cohort([2, 0, 1])))
    assert_same(trained, trained_again[jnp.array([2, 0])])
    assert_same(mean, mean_again[jnp.array([2, 0])])
    other, _ = gather(run(jax.random.key(4), _cohort([1, 2])))
    assert not np.allclose(trained, other)


def test_each_step_draws_anew():
    keys = []

    def loss(params, examples, key):
        noise = jax.random.normal(key, examples["y"].shape)
        jax.debug.callback(lambda v: keys.append(v.tolist()), noise)
        return noise * params["b"]

    train(
        _params(),
        _batches(7, 2),
        loss=loss,
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
    )
    jax.effects_barrier()
    assert len({tuple(k) for k in keys}) == STEPS


@pytest.mark.once
@pytest.mark.parametrize("unroll", [2, True])
def test_unrolling_changes_no_number(unroll):
    results = (_train(_params(), _cohort(), _adam(0.1), unroll=u) for u in (1, unroll))
    assert_same(*results)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_half_precision_params(dtype):
    params = jax.tree.map(lambda v: v.astype(dtype), _params())
    result = train(params, _batches(7, 2, dtype), loss=_loss, optimizer=optax.sgd(0.1))
    assert (
        result.params["w"].dtype
        == result.delta["b"].dtype
        == result.loss.dtype
        == dtype
    )
    mean, count = evaluate(params, _batches(7, 2, dtype), loss=_loss)
    assert (mean.dtype, count) == (dtype, 7)


def test_python_scalars_are_params():
    loss = lambda w, examples: (w - examples["y"]) ** 2  # noqa: E731
    result = train(0.0, _batches(7, 2), loss=loss, optimizer=optax.sgd(0.1))
    assert result.params.dtype == jnp.float32


@pytest.mark.parametrize("size", SIZES)
def test_evaluation(size):
    mean, count = evaluate(_params(), _batches(size, 2), loss=_loss)
    x, y = _rows(size, 2)
    rows = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    expected = np.mean(_loss(_params(), rows)) if size else 0.0
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert count == size


def test_evaluation_of_a_cohort():
    def work(b):
        return tuple(evaluate(_params(), b, loss=_loss))

    mean, count = gather(fad.program(lambda c: fad.map(work, c))(_cohort()))
    assert count.tolist() == list(SIZES)
    assert mean[0] == 0


@pytest.mark.parametrize("call", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("loss", "came"),
    [
        (lambda p, e: jnp.mean(e["y"]), r"float32\[\]"),
        (lambda p, e: e["x"], r"float32\[\d,2\]"),
        (lambda p, e: 1.0, "float 1.0"),
    ],
)
def test_a_loss_that_is_not_one_per_row(call, loss, came):
    fn = {
        "train": lambda: train(
            _params(), _batches(1, 1), loss=loss, optimizer=optax.sgd(0.1)
        ),
        "evaluate": lambda: evaluate(_params(), _batches(1, 1), loss=loss),
    }[call]
    with pytest.raises(fad.FadError, match=f"gave {came}; expected one loss per row"):
        fn()


def test_integer_params_are_refused():
    batches = fad.local.Batches({"x": jnp.ones((1, 2))}, jnp.ones((1, 2), bool), 0)
    with pytest.raises(fad.FadError, match=r"params\['n'\] is int 3; expected real"):
        fad.local.train(
            {"n": 3}, batches, loss=lambda p, e: e["x"], optimizer=optax.sgd(0.1)
        )
