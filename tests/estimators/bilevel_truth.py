"""Closed forms of bilevel estimators on federated quadratics, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

import fad

LR = 0.5


def make_data(heterogeneity=1.0, clients=4):
    return fad.data.Quadratics.random(
        clients, lower_size=4, upper_size=3, heterogeneity=heterogeneity, mu=0.2, seed=2
    )


X = np.array([0.7, -1.1, 0.4])
Y = np.array([0.2, -0.3, 0.5, 1.0])


def run(estimator, cohorts, key=None, x=X, y=Y):
    """Return the estimate at x from y, compiled."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
    return jax.jit(estimator.estimate)(x, state, cohorts, key)


def descend(data, steps, y=Y, x=X, lr=LR):
    """Return y after gradient steps on the mean lower loss, and dy/dx."""
    m, slope = data.mean, np.zeros((len(y), len(x)))
    for _ in range(steps):
        y = y - lr * (m.A @ y + m.C @ x + m.a)
        slope = slope - lr * (m.A @ slope + m.C)
    return y, slope


def upper(data, y, x=X):
    """Return f, and its gradients by x and by y, of the mean client."""
    m = data.mean
    return m.upper(x, y), m.K.T @ y + m.H @ x + m.h, m.F @ y + m.K @ x + m.f


def implicit(data, y, v):
    """Return ``grad_x f - J v``."""
    return upper(data, y)[1] - data.mean.C.T @ v


def series(A, b, terms, step=LR):
    """Return ``step * sum_{j <= terms} (I - step A)^j b``."""
    v, p = np.zeros_like(b), step * b
    for _ in range(terms + 1):
        v, p = v + p, p - step * A @ p
    return v


def aggregated(data, steps, lr=LR):
    """Return y, P and, for each Q, the Z of aggregated iterative differentiation."""
    m, y = data.mean, Y
    p, z = np.zeros_like(Y), np.zeros((steps, len(Y)))
    for t in range(steps):
        b = upper(data, y)[2]
        p = p - lr * (m.A @ p - b)
        z = z - lr * z @ m.A
        z[t] = steps * lr * b
        y = y - lr * (m.A @ y + m.C @ X + m.a)
    return y, p, z
