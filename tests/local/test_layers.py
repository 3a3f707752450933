"""Layers for local training, against Flax's and XLA's own."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from fad.local import Batches, layers, train
from tests.subjects import assert_same

pytestmark = pytest.mark.once

implementations = pytest.mark.parametrize("implementation", ["patches", "lax"])
convolutions = pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 3)},
        {"kernel_size": (3, 2), "padding": "VALID"},
        {"kernel_size": (2, 3), "strides": (3, 2), "padding": "VALID"},
        {"kernel_size": (2, 2), "padding": 2, "use_bias": False},
        {"kernel_size": (2, 2), "padding": ((0, 1), (2, 0)), "strides": (2, 1)},
        {"kernel_size": (1, 1), "padding": (1, 0)},
    ],
)
pools = pytest.mark.parametrize(
    "options",
    [
        {"window_shape": (2, 2), "strides": (2, 2)},
        {"window_shape": (2, 3)},
        {"window_shape": (3, 3), "strides": (2, 1), "padding": "SAME"},
        {"window_shape": (2, 2), "strides": (3, 2), "padding": ((1, 0), (0, 1))},
    ],
)


@pytest.fixture
def images(getkey, x64):
    return jax.random.normal(getkey(), (2, 7, 6, 3), jnp.float64)


def _pair(implementation, options):
    """Return fad's and Flax's layer."""
    double = {"param_dtype": jnp.float64, "bias_init": nn.initializers.normal(1.0)}
    mine = layers.Conv(4, **options, **double, implementation=implementation)
    return mine, nn.Conv(4, **options, **double)


def _energy(apply):
    return lambda *args: jnp.sum(jnp.tanh(apply(*args)) ** 2)


def _values_and_gradients(apply, *args):
    """Return ``apply``'s values and the gradients of a function of them."""
    by = tuple(range(len(args)))
    return jax.jit(lambda *a: (apply(*a), jax.grad(_energy(apply), by)(*a)))(*args)


def _flax(fn):
    """Return ``fn`` of Flax with the promotion that its code needs."""

    def call(*args, **options):
        with jax.numpy_dtype_promotion("standard"):
            return fn(*args, **options)

    return call


@implementations
@convolutions
def test_a_convolution_is_flaxs(implementation, options, images, getkey):
    mine, flax = _pair(implementation, options)
    params = jax.jit(flax.init)(getkey(), images)
    results = [_values_and_gradients(f.apply, params, images) for f in (mine, flax)]
    assert_same(*results)


def test_a_convolution_starts_as_flaxs_does(images):
    key, x = jax.random.key(0), images.astype(jnp.float32)
    mine, flax = (c(4, (3, 3)).init(key, x) for c in (layers.Conv, nn.Conv))
    assert_same(mine, flax, tol=0)


@implementations
def test_higher_derivatives_of_a_convolution(implementation, images, getkey):
    options = {"kernel_size": (3, 3), "strides": (2, 1), "padding": "SAME"}
    mine, flax = _pair(implementation, options)
    params = flax.init(getkey(), images)
    tangent = jax.tree.map(lambda v: jax.random.normal(getkey(), v.shape), params)

    def products(layer):
        f = lambda p: _energy(layer.apply)(p, images)  # noqa: E731
        forward = jax.jvp(f, (params,), (tangent,))
        return forward, jax.jvp(jax.grad(f), (params,), (tangent,))

    assert_same(*(jax.jit(lambda f=f: products(f))() for f in (mine, flax)))


@implementations
def test_clients_have_their_own_weights(implementation, images, getkey):
    mine, flax = _pair(implementation, {"kernel_size": (3, 3)})
    keys = jax.random.split(getkey(), 3)
    params = jax.jit(jax.vmap(flax.init, (0, None)))(keys, images)
    per_client = jnp.stack([images, images + 1, 2 * images])
    results = [
        jax.jit(jax.vmap(jax.value_and_grad(_energy(f.apply))))(params, per_client)
        for f in (mine, flax)
    ]
    assert_same(*results)


@pytest.mark.parametrize("shape", [(7, 6, 3), (2, 2, 7, 6, 3)])
def test_any_number_of_batch_axes(shape, getkey):
    x = jax.random.normal(getkey(), shape)
    params = nn.Conv(4, (3, 3)).init(getkey(), x)
    expected = nn.Conv(4, (3, 3)).apply(params, x)
    assert_same(layers.Conv(4, (3, 3)).apply(params, x), expected, tol=1e-5)
    pooled = nn.max_pool(x, (2, 2), (2, 2))
    assert_same(layers.max_pool(x, (2, 2), (2, 2)), pooled)


@implementations
def test_dtypes(implementation):
    x = jnp.ones((1, 5, 5, 2), jnp.bfloat16)
    layer = layers.Conv(4, (3, 3), dtype=jnp.bfloat16, implementation=implementation)
    out, params = layer.init_with_output(jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    kernel: Any = params["params"]["kernel"]
    assert kernel.dtype == jnp.float32
    half = layers.StaticBatchNorm(param_dtype=jnp.bfloat16)
    assert half.init_with_output(jax.random.key(0), x)[0].dtype == jnp.bfloat16
    for pool in (layers.max_pool, layers.avg_pool):
        assert pool(x, (2, 2)).dtype == jnp.bfloat16


@pytest.mark.parametrize(("backend", "op"), [("cpu", "dot"), ("tpu", "conv")])
def test_the_implementation_follows_the_backend(backend, op, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    conv = lambda x: layers.conv(x, jnp.ones((3, 3, 2, 5)))  # noqa: E731
    jaxpr = jax.make_jaxpr(conv)(jnp.ones((1, 4, 4, 2)))
    used = {str(eqn.primitive) for eqn in jaxpr.eqns}
    assert ("dot_general" in used) == (op == "dot")
    assert ("conv_general_dilated" in used) == (op == "conv")


@pools
@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_pooling_is_flaxs(name, options, images):
    fns = getattr(layers, name), _flax(getattr(nn, name))
    of_images = [lambda x, f=f: f(x, **options) for f in fns]
    assert_same(*(_values_and_gradients(f, images) for f in of_images))


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_higher_derivatives_of_pooling(name, images):
    f = _energy(lambda x: getattr(layers, name)(x, (2, 2)))

    @jax.jit
    def both_ways(a, b):
        by_reverse = jnp.vdot(jax.jvp(jax.grad(f), (images,), (a,))[1], b)
        once = lambda x: jax.jvp(f, (x,), (a,))[1]  # noqa: E731
        return by_reverse, jax.jvp(once, (images,), (b,))[1]

    assert_same(*both_ways(jnp.cos(images), jnp.sin(images)))


def test_an_average_may_leave_padding_out(images):
    options = {"padding": "SAME", "count_include_pad": False}
    assert_same(
        layers.avg_pool(images, (3, 3), (2, 2), **options),
        _flax(nn.avg_pool)(images, (3, 3), (2, 2), **options),
    )


def test_of_equal_values_the_first_gets_the_derivative():
    x = jnp.zeros((1, 4, 4, 1))
    grads = [
        jax.grad(lambda x, f=f: jnp.sum(f(x, (2, 2), (2, 2))))(x)
        for f in (layers.max_pool, nn.max_pool)
    ]
    assert_same(*grads, tol=0)


@pytest.mark.parametrize("place", range(4))
def test_a_maximum_keeps_nan(place):
    x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(layers.max_pool(x, (2, 2))).all()


@pytest.mark.parametrize("shape", [(6, 3), (6, 5, 4, 3)])
def test_static_batch_norm_is_batch_norm_in_training(shape, getkey, x64):
    x = jax.random.normal(getkey(), shape)
    mine = layers.StaticBatchNorm(param_dtype=jnp.float64)
    flax = nn.BatchNorm(use_running_average=False, param_dtype=jnp.float64)
    params = {"params": {"scale": 1 + jnp.arange(3.0), "bias": jnp.arange(3.0)}}
    assert_same(
        jax.tree.map(jnp.shape, mine.init(getkey(), x)), jax.tree.map(jnp.shape, params)
    )

    def reference(params, x):
        stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        variables = {**params, "batch_stats": stats}
        return _flax(flax.apply)(variables, x, mutable=["batch_stats"])[0]

    results = [_values_and_gradients(f, params, x) for f in (mine.apply, reference)]
    assert_same(*results, tol=1e-9)


def test_static_batch_norm_leaves_padding_out(getkey, x64):
    x = jax.random.normal(getkey(), (6, 5, 4, 3))
    mask = jnp.arange(6) < 4
    layer: Any = layers.StaticBatchNorm(param_dtype=jnp.float64)
    params = layer.init(getkey(), x)
    real = layer.apply(params, x, mask)[:4]
    assert_same(real, layer.apply(params, x[:4]))
    f = lambda x: jnp.sum(layer.apply(params, x, mask)[:4] ** 3)  # noqa: E731
    assert not jnp.any(jax.grad(f)(x)[4:])


def test_a_batch_of_padding_alone_has_finite_derivatives():
    x, mask = jnp.ones((2, 3)), jnp.zeros(2, bool)
    layer: Any = layers.StaticBatchNorm()
    params = layer.init(jax.random.key(0), x)
    grads = jax.grad(lambda *a: jnp.sum(layer.apply(*a, mask)), (0, 1))(params, x)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


class _Net(nn.Module):
    conv: type
    pool: Callable

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.conv(4, (3, 3), name="conv")(x))
        x = self.pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_local_training_gives_what_flaxs_layers_give(getkey):
    nets = _Net(layers.Conv, layers.max_pool), _Net(nn.Conv, nn.max_pool)
    examples = {
        "x": jax.random.normal(getkey(), (2, 4, 6, 6, 1)),
        "y": jnp.arange(8).reshape(2, 4) % 3,
    }
    batches = Batches(examples, jnp.ones((2, 4), bool), jnp.int32(0))
    params = nets[1].init(getkey(), examples["x"][0])

    def trained(net):
        def loss(p, e):
            logits = net.apply(p, e["x"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, e["y"])

        run = jax.jit(lambda p: train(p, batches, loss=loss, optimizer=optax.sgd(0.1)))
        return run(params).params

    assert_same(*map(trained, nets), tol=1e-5)
