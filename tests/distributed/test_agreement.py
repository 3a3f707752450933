"""Processes that disagree are told so, all of them, and where."""

import pytest

from fad.distributed import check_agreement

MESSAGES = {
    "nothing": None,
    "shape": "f: the processes disagree about argument data['y']: process 0 has "
    "float32[0], process 1 has float32[1]. All processes must call it with the same",
    "static": "argument remat: process 0 has False, process 1 has True.",
    "missing": "the arguments: process 0 has y: int32[], process 1 has nothing.",
    "call": ": the processes run different calls: process 0 has fad.jit(f0), process 1 "
    "has fad.jit(f1). All processes must run the same calls in the same order.",
    "program": "f: the arguments agree, but the processes traced different programs; "
    "the first line that differs: process 0 has nothing, process 1 has add. A program",
    "long": "y0, process 1 has yyy",
    "counts": "clients(n=5): process 0 gives 1 clients, expected 4, the clients 0:4; "
    "process 1 gives 2 clients, expected 1, the clients 4:5.",
    "types": "argument tree['x']: process 0 has int64[3] of each client, process 1 has "
    "float64[3] of each client.",
    "fault": "process 1: the client axes differ: tree[0] has 2 clients, tree[1] has 1.",
    "jit shape": "fad.jit(far): the processes disagree about argument w['w']: process "
    "0 has float32[2], process 1 has float32[1,2].",
    "jit type": "argument w['w']: process 0 has float32[2], process 1 has int32[2].",
    "jit static": "argument power: process 0 has int 2, process 1 has int 3.",
    "jit program": "fad.jit(other): the arguments agree, but the processes traced "
    "different programs; the first line that differs: process 0 has ",
    "jit call": "process 0 has fad.jit(far), process 1 has fad.jit(other).",
    "jit nothing": None,
}


@pytest.mark.parametrize("case", MESSAGES)
def test_every_process_names_what_differs(session, case):
    for printed in session.printed:
        said = printed["disagreement"][case]
        if MESSAGES[case] is None:
            assert said is None
        else:
            assert MESSAGES[case] in said


def test_all_cases_are_run(session):
    for printed in session.printed:
        assert set(printed["disagreement"]) == set(MESSAGES)


def test_one_process_agrees_with_itself():
    check_agreement("f", [("x", "float32[3]")], "{ lambda ; }")
