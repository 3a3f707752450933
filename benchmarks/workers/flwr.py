"""Flower: its FedAvg strategy over Ray actors, one per core, in PyTorch.

A simulation runs all its rounds in one call, so it runs in a thread, and its strategy
waits at a gate for each turn.
"""

import os
import queue
import tempfile
import threading
import time

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.server import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.workers import _flwr_client
from benchmarks.workers._serve import serve
from benchmarks.workers._torch import Model, get_params, set_params


class Scheduled(FedAvg):
    """FedAvg whose clients come from the schedule, one round per turn."""

    def __init__(self, schedule):
        super().__init__(fraction_evaluate=0.0, min_available_nodes=schedule.shape[1])
        self.schedule, self.arrays = schedule, None
        self.turns, self.done = queue.Queue(), queue.Queue()

    def configure_train(self, server_round, arrays, config, grid):
        """Tell every node which client of this round it is."""
        turn = self.turns.get()
        messages = []
        while len(nodes := sorted(grid.get_node_ids())) < self.schedule.shape[1]:
            time.sleep(0.05)  # nodes register one by one
        for node, client in zip(nodes, self.schedule[turn], strict=True):
            config = ConfigRecord({"client": int(client)})
            content = RecordDict({"arrays": arrays, "config": config})
            message = Message(content=content, message_type="train", dst_node_id=node)
            messages.append(message)
        return messages

    def aggregate_train(self, server_round, replies):
        """Average, and report the end of the turn."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        failed = [r.error.reason for r in replies if r.has_error()]
        missing = self.schedule.shape[1] - len(replies)
        self.arrays = arrays
        self.done.put(failed[0] if failed else f"{missing} lost" if missing else None)
        return arrays, metrics


class Rounds:
    """FedAvg in Flower's simulation."""

    def __init__(self, workload):
        self.workload = workload
        with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
            self.path = file.name
        workload.save(self.path)
        os.environ[_flwr_client.WORKLOAD] = self.path
        self.strategy = Scheduled(workload.schedule)
        model = Model(workload.model)
        set_params(model, workload)
        server = ServerApp()

        @server.main()
        def main(grid, context):
            del context
            self.strategy.start(
                grid,
                ArrayRecord(model.state_dict()),
                num_rounds=len(workload.schedule),
            )

        threading.Thread(target=self._simulate, args=(server,), daemon=True).start()

    def _simulate(self, server):
        try:
            run_simulation(
                server,
                _flwr_client.app,
                num_supernodes=self.workload.schedule.shape[1],
                backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
            )
        except BaseException as error:
            self.strategy.done.put(f"{type(error).__name__}: {error}")
            raise

    def turn(self, i):
        """Run one round."""
        self.strategy.turns.put(i)
        failure = self.strategy.done.get()
        if failure is not None:
            raise RuntimeError(failure)

    def result(self):
        """Return the params."""
        state = self.strategy.arrays.to_torch_state_dict()
        return get_params(state, self.workload.model)

    def facts(self):
        """Return the number of actors."""
        return {"actors": os.cpu_count()}

    def close(self):
        """End Ray's processes."""
        import ray

        ray.shutdown()
        os.unlink(self.path)


if __name__ == "__main__":
    serve({"fedavg": Rounds})
