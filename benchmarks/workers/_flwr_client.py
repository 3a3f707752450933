"""The client app; in a module of its own, so that Ray's actors can import it."""

import functools
import os

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks._workload import BATCH, LR, load
from benchmarks.workers._torch import Model

WORKLOAD = "FAD_BENCHMARK_WORKLOAD"

app = ClientApp()


@functools.cache
def held():
    """Read the data and build the model once per actor, not once per message."""
    torch.set_num_threads(1)
    workload = load(os.environ[WORKLOAD])
    return workload, Model(workload.model)


@app.train()
def train(message, context):
    """Train one client, as Flower's PyTorch quickstart does."""
    del context
    workload, model = held()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = workload.client(int(message.content["config"]["client"]))
    x, y = torch.from_numpy(x), torch.from_numpy(y).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for start in range(0, len(y), BATCH):
        optimizer.zero_grad()
        model.loss(x[start : start + BATCH], y[start : start + BATCH]).backward()
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y)}),
        }
    )
    return Message(content=content, reply_to=message)
