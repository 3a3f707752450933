"""FedJAX's client loop over exact batches: its FedAvg but for the batches.

Its stock ``federated_averaging`` fills the last batch up with examples used before,
which is another computation; ``ClientDataset.padded_batch`` pads it, with a mask.
"""

import fedjax
import jax
import jax.numpy as jnp
from fedjax.algorithms.fed_avg import create_train_for_each_client

from benchmarks.workers._models import losses
from benchmarks.workers._serve import flat, layers, serve


class Rounds:
    """FedAvg as in ``fedjax.algorithms.fed_avg``."""

    def __init__(self, workload):
        self.workload = workload
        self.params = jax.tree_util.tree_map(jnp.asarray, layers(workload))
        data = map(workload.client, range(len(workload.sizes)))
        self.data = [fedjax.ClientDataset({"x": x, "y": y}) for x, y in data]
        self.server = fedjax.optimizers.sgd(1.0)
        self.state = self.server.init(self.params)

        def loss(params, batch):
            each = losses(workload.model, params, batch["x"], batch["y"])
            mask = batch[fedjax.EXAMPLE_MASK_KEY]
            return jnp.where(mask, each, 0.0).sum() / mask.sum()

        self.train = create_train_for_each_client(
            lambda params, batch, rng: jax.grad(loss)(params, batch),
            fedjax.optimizers.sgd(0.1),
        )

    def turn(self, i):
        """Run one round: sum the weighted updates, then take a server step."""
        clients = [
            (int(c), self.data[c].padded_batch(batch_size=10), jax.random.PRNGKey(0))
            for c in self.workload.schedule[i]
        ]
        total, count = fedjax.tree_util.tree_zeros_like(self.params), 0.0
        for client, delta in self.train(self.params, clients):
            number = len(self.data[client])
            weighted = fedjax.tree_util.tree_weight(delta, number)
            total = fedjax.tree_util.tree_add(total, weighted)
            count += number
        mean = fedjax.tree_util.tree_inverse_weight(total, count)
        self.state, self.params = self.server.apply(mean, self.state, self.params)
        jax.block_until_ready(self.params)

    def result(self):
        """Return the params."""
        return flat(self.params)

    def facts(self):
        """Nothing else."""
        return {}


if __name__ == "__main__":
    serve({"fedavg": Rounds})
