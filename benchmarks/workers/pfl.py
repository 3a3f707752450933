"""pfl-research: its FederatedAveraging on its SimulatedBackend, in PyTorch."""

import itertools

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel

from benchmarks.workers._serve import serve
from benchmarks.workers._torch import Model, get_params, set_params

NEVER = 10**9  # It evaluates in iterations that divide by this, so start after 0.


class Rounds:
    """FedAvg, one central iteration per turn."""

    def __init__(self, workload, threads):
        torch.set_num_threads(threads)
        self.workload = workload
        module = Model(workload.model)
        set_params(module, workload)
        self.module = module
        self.model = PyTorchModel(
            module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)
        )
        self.tensors = [
            (torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))
            for x, y in map(workload.client, range(len(workload.sizes)))
        ]
        users = itertools.chain.from_iterable(workload.schedule.tolist())
        data = FederatedDataset(self.user, lambda: next(users))
        self.backend = SimulatedBackend(data, data, [WeightByDatapoints()])
        self.algorithm = FederatedAveraging()
        self.algorithm._current_central_iteration = 1

    def user(self, i):
        """Return the dataset of a client."""
        return PyTorchTensorDataset(self.tensors[i], user_id=str(i))

    def turn(self, i):
        """Run one central iteration."""
        params = NNAlgorithmParams(
            central_num_iterations=i + 2,
            evaluation_frequency=NEVER,
            train_cohort_size=self.workload.schedule.shape[1],
            val_cohort_size=None,
        )
        train = NNTrainHyperParams(
            local_batch_size=10, local_num_epochs=1, local_learning_rate=0.1
        )
        self.algorithm.run(
            params, self.backend, self.model, train, send_metrics_to_platform=False
        )

    def result(self):
        """Return the params."""
        return get_params(self.module.state_dict(), self.workload.model)

    def facts(self):
        """Return the threads."""
        return {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve({"fedavg": Rounds})
