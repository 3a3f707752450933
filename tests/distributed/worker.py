"""One process of a program of several; ``python -m tests.distributed.worker MODE``."""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

import fad
import fad.distributed
from fad.distributed._gather import gather
from tests import rounds

CLIENTS, ROUNDS, EVERY = 7, 12, (0, 1, 2)  # the devices do not divide the clients


def put(mesh):
    """Return the arguments of a training, the clients' data over the mesh."""
    params, server_lr, client_lr, *data = jax.device_get(rounds.make_args(CLIENTS))
    mine = fad.distributed.local_range(CLIENTS, mesh)
    own = [jax.tree.map(lambda x: x[mine], d.unsafe_gather()) for d in data]
    data = [fad.distributed.clients(tree, mesh, n=CLIENTS) for tree in own]
    return params, server_lr, client_lr, *data


def gradient(path):
    """Save the value and the gradient of a training."""
    mesh = fad.distributed.mesh()
    train = jax.value_and_grad(rounds.train, EVERY)
    save(path, jax.tree.leaves(fad.jit(train, chunk=1, mesh=mesh)(*put(mesh))))


def training(path):
    """Train with a checkpoint each round; resume where there is one."""
    mesh = fad.distributed.mesh()
    step = fad.jit(rounds.fl_round, chunk=1, mesh=mesh)
    params, *rest = put(mesh)
    state = params, jax.tree.map(np.zeros_like, params)
    first, treedef = 0, jax.tree.structure(state)
    if os.path.exists(path):
        with np.load(path) as stored:
            first = int(stored["round"])
            names = [f"arr_{i}" for i in range(treedef.num_leaves)]
            state = treedef.unflatten([stored[name] for name in names])
        print("resumed after round", first)
    for number in range(first, ROUNDS):
        state = step(*state, *rest)
        save(path, jax.tree.leaves(state), round=number + 1)
        print("finished round", number + 1)
        hold(number + 1)


def exchange():
    """Exchange numbers round by round, without end."""
    for number in itertools.count(1):
        with fad.distributed.guard("exchange"):
            gather(np.ones(3, np.float32))
        print("finished round", number)
        hold(number)


def hold(number):
    """Let the test act in the middle of the run; a second process then hangs."""
    if number != 5 or jax.process_count() == 1:
        return
    if jax.process_index() == int(os.environ.get("VICTIM", "-1")):
        if os.environ.get("DEED") == "raise":
            raise KeyError("a mistake of the program")
        time.sleep(600)


def save(path, leaves, **more):
    """Write arrays by process 0, whole or not at all."""
    if jax.process_index() == 0:
        part = f"{path}.part.npz"
        np.savez(part, *map(np.asarray, leaves), **more)
        os.replace(part, path)


def disagreement():
    """Return the error of each way to disagree."""
    me, mesh = jax.process_index(), fad.distributed.mesh()
    check, clients = fad.distributed.check_agreement, fad.distributed.clients
    x = ("x", "float32[3]")
    mine, own = np.ones((me + 1, 3), np.float32), np.ones((4 - 3 * me, 3))
    compiled = {me: of_jit(mesh, me) for me in (0, 1)}
    cases = {
        "nothing": lambda: check("f", [x], f"<function at 0x7f{me}>"),
        "shape": lambda: check("f", [x, ("data['y']", f"float32[{me}]")]),
        "static": lambda: check("f", [x, ("remat", str(bool(me)))]),
        "missing": lambda: check("f", [x, ("y", "int32[]")][: 2 - me]),
        "call": lambda: check(f"fad.jit(f{me})", [x]),
        "program": lambda: check("f", [x], "{ lambda ;\n  mul\n" + "  add\n" * me),
        "long": lambda: check("f", [("x", "y" * 1000 + str(me)), x]),
        "counts": lambda: clients({"x": mine}, mesh, n=5),
        "types": lambda: clients({"x": own.astype([int, float][me])}, mesh, n=5),
        "fault": lambda: clients([mine, np.ones(me)], mesh, n=5),
        **{f"jit {name}": case for name, case in compiled[me].items()},
        "jit nothing": compiled[0]["shape"],
    }
    return {name: error_of(case) for name, case in cases.items()}


def of_jit(mesh, me):
    """Return calls of ``fad.jit`` that differ by ``me``."""

    @fad.program
    def far(w, data, power=2):
        return fad.mean(fad.map(lambda x: ((w["w"] - x) ** power).sum(), data))

    def other(w, data):
        return far(w, data, 2 + me)

    run = fad.jit(far, chunk=1, mesh=mesh, static_argnames="power")
    mine = fad.distributed.local_range(3, mesh)
    data = fad.distributed.clients(np.ones((3, 2), np.float32)[mine], mesh, n=3)
    w = {"w": np.ones(2, np.float32)}
    wide = {"w": np.ones((1, 2), np.float32)}
    return {
        "shape": lambda: run(wide if me else w, data),
        "type": lambda: run({"w": w["w"].astype([np.float32, np.int32][me])}, data),
        "static": lambda: run(w, data, power=2 + me),
        "program": lambda: fad.jit(other, chunk=1, mesh=mesh)(w, data),
        "call": lambda: fad.jit([far, other][me], chunk=1, mesh=mesh)(w, data),
    }


def error_of(call):
    """Return the message of the error that a call raises, if any."""
    try:
        call()
    except fad.FadError as error:
        return str(error)
    return None


def rows():
    """Return which rows each device of this process holds, ragged."""
    out = {}
    for n in (3, 5, 8, 11):
        mesh = fad.distributed.mesh()
        mine = fad.distributed.local_range(n, mesh)
        got = fad.distributed.clients(np.arange(n)[mine], mesh, n=n).tree
        shards = sorted(got.addressable_shards, key=lambda s: s.index[0].start)
        out[n] = [s.data.tolist() for s in shards]
    return out


def session(path):
    """Do all that needs no process to end, and print what comes out, as JSON."""
    gradient(path)
    print("\n" + json.dumps({"rows": rows(), "disagreement": disagreement()}))


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    fad.distributed.initialize(
        start_seconds=int(os.environ.get("START_SECONDS", "60")),
        collective_seconds=int(os.environ.get("COLLECTIVE_SECONDS", "30")),
    )
    globals()[mode](*map(Path, arguments))
