"""A toy algorithm and task in plain JAX, to test the run loop alone."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fad
from fad.experiment import DataConfig, Experiment, ModelConfig

traces: list[int] = []  # One entry a trace of Toy's step.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the toy."""

    name: ClassVar[str] = "toy"
    lr: float = 0.5
    momentum: float | None = None
    nan_at: int = 0
    bad: Literal["", "dtype", "tree", "vector"] = ""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")


class Toy:
    """A registry entry: moves towards the cohort's mean, with noise."""

    Config = Config

    @staticmethod
    def build(config: Config, task: Any) -> fad.Algorithm:
        del task
        return build(config)


ALGORITHMS: dict[str, Any] = {"toy": Toy}


class State(NamedTuple):
    params: dict[str, Any]
    key: jax.Array
    steps: Any
    empty: tuple[()] = ()


def cheap_noise(key: jax.Array) -> jax.Array:
    """Return a number that depends on the key; random ones take long to compile."""
    return 1e-11 * jax.random.key_data(key).astype(jnp.float32).sum()


def build(config: Config) -> fad.Algorithm:
    def init(key: jax.Array) -> State:
        # A weakly typed counter: the run must not compile twice for it.
        return State({"w": jnp.ones((3,))}, jax.random.fold_in(key, 1), 0)

    def step(state: State, cohort: Any, key: jax.Array) -> tuple[Any, dict]:
        traces.append(1)
        w, noise = state.params["w"], cheap_noise(key) + cheap_noise(state.key)
        w = w + config.lr * (cohort["x"].mean(0) - w) + noise
        w = jnp.where(state.steps + 1 == config.nan_at, jnp.nan, w)
        key = jax.random.wrap_key_data(jax.random.key_data(state.key) + jnp.uint32(9))
        new = State({"w": w}, key, state.steps + 1)
        lr = config.lr / (state.steps + 1).astype(jnp.float32)
        metrics = {"loss": jnp.sum(w**2), "server_lr": lr}
        match config.bad:
            case "dtype":
                new = new._replace(params={"w": w.astype(jnp.float16)})
            case "tree":
                new = new._replace(params={"w": w, "v": w})
            case "vector":
                metrics["norms"] = w
        return new, metrics

    return fad.Algorithm(init, step)


class Cohorts:
    """Stands for ``fad.data.Cohorts``: what ``cohort`` gives, round by round."""

    def __init__(self, clients: "Clients", key: Any, size: int, options: Any) -> None:
        self.state = {"round": np.int32(0)}
        self._make = functools.partial(clients.cohort, size=size, **options)
        self._key = key

    def __next__(self) -> Any:
        t = self.state["round"] + 1
        self.state = {"round": np.int32(t)}
        return self._make(jax.random.fold_in(self._key, t))

    def restore(self, state: Any) -> None:
        self.state = {"round": np.int32(state["round"])}

    def close(self) -> None:
        pass


class Clients:
    """Stands for ``fad.data.Federated``."""

    num_clients = 4

    def cohort(
        self, key: Any, size: int, *, batch_size: int, epochs: int, **options: Any
    ) -> Any:
        del options
        shape = (size * batch_size * epochs, 3)
        return {"x": np.asarray(jax.random.normal(key, shape), np.float32)}

    def cohorts(self, key: Any, size: int, *, place: Any, **options: Any) -> Cohorts:
        del place
        return Cohorts(self, key, size, options)


class FakeTask:
    """Stands for ``fad.data.Task``."""

    def __init__(self) -> None:
        self.train = Clients()
        self.set_metrics = {}
        self.test = {"y": np.arange(5, dtype=np.float32)}

    @staticmethod
    def metrics(params: Any, examples: Any) -> dict[str, jax.Array]:
        near = jnp.abs(params["w"].sum() - examples["y"])
        return {"accuracy": jnp.exp(-near), "loss": near}


def experiment(**changes: Any) -> Experiment[Config]:
    options: dict[str, Any] = {
        "name": "toy",
        "rounds": 6,
        "eval_every": 2,
        "checkpoint_every": 2,
        "cohort": 2,
        "batch_size": 4,
        "epochs": 1,
        "algorithm": Config(),
        "data": DataConfig(clients=4),
        "model": ModelConfig(),
    }
    return Experiment(**{**options, **changes})


TOML = """\
name = "toy"
rounds = 6
eval_every = 2
checkpoint_every = 2
cohort = 2
batch_size = 4
epochs = 1

[algorithm]
name = "toy"

[data]
clients = 4

[model]
"""
