"""The workload: FedAvg on synthetic clients, the same arrays for every framework.

400 clients of 20 to 50 examples (28 x 28, 62 classes, labels Dirichlet 0.3), 100 of
them a round by a fixed schedule, batches of 10 in stored order of which the last is
shorter, one epoch, SGD at 0.1, the mean weighted by examples, a server step of 1.

NumPy alone, since each framework's environment imports it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES, PIXELS, BATCH, LR = 62, 28, 10, 0.1
SMALLEST, LARGEST, ALPHA, SEED = 20, 50, 0.3, 2024
STEPS = -(-LARGEST // BATCH)

Params = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """Clients, the cohort of every round, and the params to start from.

    Attributes:
        x: ``[N, 28, 28]`` float32, sorted by client.
        y: ``[N]`` int32.
        offsets: ``[clients + 1]``; client ``i`` holds ``offsets[i]:offsets[i + 1]``.
        schedule: ``[rounds, cohort]``, the clients of every round.
        params: By ``layer/kernel`` and ``layer/bias``: dense ``[in, out]``, convolution
            ``[height, width, in, out]``, images flattened as (row, column, channel).
        model: ``"mlp"`` or ``"cnn"``.
    """

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    schedule: np.ndarray
    params: Params
    model: str

    @property
    def sizes(self) -> np.ndarray:
        """The number of examples of every client."""
        return np.diff(self.offsets)

    def client(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples of a client."""
        rows = slice(self.offsets[i], self.offsets[i + 1])
        return self.x[rows], self.y[rows]

    def padded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all clients' batches with padding, and which rows are real.

        ``[clients, 5, 10, 28, 28], [clients, 5, 10], [clients, 5, 10]``.
        """
        real = np.arange(STEPS * BATCH) < self.sizes[:, None]
        x = np.zeros((*real.shape, PIXELS, PIXELS), np.float32)
        y = np.zeros(real.shape, np.int32)
        x[real], y[real] = self.x, self.y
        lead = (len(self.sizes), STEPS, BATCH)
        return x.reshape(*lead, PIXELS, PIXELS), y.reshape(lead), real.reshape(lead)

    def batches(self, turn: int) -> int:
        """Return the number of real batches in a round."""
        return int((-(-self.sizes[self.schedule[turn]] // BATCH)).sum())

    def save(self, path: Path | str) -> None:
        """Write everything as one ``.npz``."""
        params = {f"params/{name}": value for name, value in self.params.items()}
        np.savez(
            path,
            x=self.x,
            y=self.y,
            offsets=self.offsets,
            schedule=self.schedule,
            model=np.array(self.model),
            **params,  # pyright: ignore[reportArgumentType]
        )


def load(path: Path | str) -> Workload:
    """Read what ``Workload.save`` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    params = {
        name.removeprefix("params/"): arrays.pop(name)
        for name in list(arrays)
        if name.startswith("params/")
    }
    model = str(arrays.pop("model"))
    return Workload(**arrays, params=params, model=model)


def make(
    model: str, *, clients: int = 400, cohort: int = 100, rounds: int = 32
) -> Workload:
    """Make the workload; the same arguments give the same arrays.

    Args:
        model: ``"mlp"``, 784-200-200-62; or ``"cnn"``, convolutions 3x3x32 and 3x3x64,
            maxpool 2, dense 128 and 62.
        clients: The number of clients.
        cohort: The clients of a round.
        rounds: The rounds of the schedule.
    """
    rng = np.random.default_rng(SEED)
    sizes = rng.integers(SMALLEST, LARGEST + 1, clients)
    shares = rng.dirichlet(np.full(CLASSES, ALPHA), clients)
    y = np.concatenate(
        [rng.choice(CLASSES, n, p=p) for n, p in zip(sizes, shares, strict=True)]
    ).astype(np.int32)
    prototypes = rng.random((CLASSES, PIXELS, PIXELS), np.float32)
    noise = rng.random((len(y), PIXELS, PIXELS), np.float32)
    x = 0.5 * (prototypes[y] + noise) - 0.5
    schedule = [rng.choice(clients, cohort, replace=False) for _ in range(rounds)]
    return Workload(
        x=x,
        y=y,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        schedule=np.stack(schedule).astype(np.int32),
        params=_params(model, np.random.default_rng(SEED + 1)),
        model=model,
    )


def _params(model: str, rng: np.random.Generator) -> Params:
    shapes: dict[str, tuple[int, ...]] = {
        "mlp": {
            "dense0": (PIXELS**2, 200),
            "dense1": (200, 200),
            "dense2": (200, CLASSES),
        },
        "cnn": {
            "conv0": (3, 3, 1, 32),
            "conv1": (3, 3, 32, 64),
            "dense0": (12 * 12 * 64, 128),
            "dense1": (128, CLASSES),
        },
    }[model]
    params = {}
    for layer, shape in shapes.items():
        scale = np.float32(np.prod(shape[:-1]) ** -0.5)
        kernel = rng.standard_normal(shape, np.float32) * scale
        params[f"{layer}/kernel"] = kernel
        params[f"{layer}/bias"] = np.zeros(shape[-1], np.float32)
    return params


def flops_of_step(model: str) -> float:
    """Return the floating-point operations of one SGD step on a full batch.

    Two per multiply-add in every product; the gradient costs twice the forward pass,
    less the derivative by the input images.
    """
    if model == "mlp":
        layers = [PIXELS**2 * 200, 200 * 200, 200 * CLASSES]
    else:
        layers = [26**2 * 9 * 32, 24**2 * 288 * 64, 9216 * 128, 128 * CLASSES]
    return 2.0 * BATCH * (3 * sum(layers) - layers[0])
