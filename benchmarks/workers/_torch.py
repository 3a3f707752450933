"""The two models in PyTorch, and their params in the workload's layout."""

import numpy as np
import torch

from benchmarks.workers._serve import layers


class Model(torch.nn.Module):
    """784-200-200-62, or two convolutions, a pool and two dense layers."""

    def __init__(self, model):
        super().__init__()
        if model == "mlp":
            self.dense0 = torch.nn.Linear(784, 200)
            self.dense1 = torch.nn.Linear(200, 200)
            self.dense2 = torch.nn.Linear(200, 62)
        else:
            self.conv0 = torch.nn.Conv2d(1, 32, 3)
            self.conv1 = torch.nn.Conv2d(32, 64, 3)
            self.dense0 = torch.nn.Linear(9216, 128)
            self.dense1 = torch.nn.Linear(128, 62)
        self.model = model

    def forward(self, x):
        """Return ``[batch, 62]`` for images ``[batch, 28, 28]``."""
        relu = torch.relu
        if self.model == "mlp":
            x = relu(self.dense1(relu(self.dense0(x.flatten(1)))))
            return self.dense2(x)
        x = relu(self.conv1(relu(self.conv0(x[:, None]))))
        x = torch.nn.functional.max_pool2d(x, 2).flatten(1)
        return self.dense1(relu(self.dense0(x)))

    def loss(self, x, y):
        """Return the mean cross-entropy."""
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x, y):
        """Return no metrics; pfl asks."""
        del x, y
        return {}


def set_params(module, workload):
    """Copy the workload's params into a module."""
    with torch.no_grad():
        for layer, parts in layers(workload).items():
            target = getattr(module, layer)
            weight = _turn(layer, parts["kernel"], workload.model, to_torch=True)
            target.weight.copy_(torch.from_numpy(weight.copy()))
            target.bias.copy_(torch.from_numpy(parts["bias"]))


def get_params(state, model):
    """Return arrays by torch's names as params in the workload's layout."""
    params = {}
    for name, value in state.items():
        layer, _, part = name.partition(".")
        value = np.asarray(value)
        if part == "weight":
            value = _turn(layer, value, model, to_torch=False)
        params[f"{layer}/{'kernel' if part == 'weight' else 'bias'}"] = value
    return params


def _turn(layer, kernel, model, *, to_torch):
    """Turn a kernel; torch flattens images as (channel, row, column)."""
    if layer.startswith("conv"):
        return kernel.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    if layer == "dense0" and model == "cnn":
        if to_torch:
            rows = kernel.reshape(12, 12, 64, -1).transpose(2, 0, 1, 3)
            return rows.reshape(9216, -1).T
        return kernel.T.reshape(64, 12, 12, -1).transpose(1, 2, 0, 3).reshape(9216, -1)
    return kernel.T
