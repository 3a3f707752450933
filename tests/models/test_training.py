"""Each model trains as clients do: all at once, and in fad's loop over them."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.test_util import check_grads

import fad
from tests.models.subjects import SUBJECTS
from tests.subjects import assert_same

pytestmark = pytest.mark.once

CLIENTS = 2


def _cohort(subject):
    """Return other examples for each client: one batch, with all of its rows real."""
    batches = fad.local.Batches(
        examples=subject.examples(lead=(CLIENTS, 1), seed=1),
        mask=jnp.ones((CLIENTS, 1, subject.shape[0]), bool),
        client=jnp.arange(CLIENTS, dtype=jnp.int32),
    )
    return jax.tree.map(jnp.asarray, batches)


@pytest.mark.parametrize("name", SUBJECTS)
def test_clients_with_their_own_weights_train_as_one_by_one(name):
    subject = SUBJECTS[name]
    params, cohort = subject.params(lead=(CLIENTS,)), _cohort(subject)
    train = functools.partial(
        fad.local.train, loss=subject.loss, optimizer=optax.sgd(0.01)
    )
    together = jax.jit(jax.vmap(train))(params, cohort)

    @fad.program
    def alone(params, cohort):
        return fad.map(train, params, cohort)

    streamed = fad.jit(alone, chunk=1)(fad.AtClients(params), fad.AtClients(cohort))
    assert_same(streamed, fad.AtClients(together), tol=1e-4)

    last = jax.tree.map(lambda v: v[:, 0], cohort.examples)
    after = jax.jit(jax.vmap(subject.loss))(together.params, last).mean(1)
    assert (after < together.loss).all()


# The norms' own derivatives are tested where the norms are.
@pytest.mark.parametrize("name", [n for n in SUBJECTS if n != "resnet_static"])
def test_derivatives_are_the_differences(name, x64):
    subject = SUBJECTS[name]
    double = functools.partial(jax.tree.map, lambda v: v.astype(jnp.float64))
    examples, params = subject.examples(), double(subject.params())
    if jnp.issubdtype(examples["x"].dtype, jnp.floating):
        examples["x"] = examples["x"].astype(jnp.float64)

    @jax.jit
    def loss(params):
        # Flax's norms mix dtypes.
        with jax.numpy_dtype_promotion("standard"):
            return subject.loss(params, examples).mean()

    assert loss(params).dtype == jnp.float64
    # A larger step crosses the kinks of ReLUs.
    check_grads(loss, (params,), order=1, rtol=1e-5, atol=1e-6, eps=1e-7)
