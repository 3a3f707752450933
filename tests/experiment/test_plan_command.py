"""``python -m algorithms plan``: what an experiment will cost, without running it."""

import jax
import pytest

from algorithms import ALGORITHMS
from fad.experiment import _tasks, load, main, make_task
from fad.experiment._plan import plan_step
from tests.experiment import fakes

TOML = """\
name = "small"
rounds = 30
eval_every = 1
checkpoint_every = 10
cohort = 5
batch_size = 10
epochs = 1

[algorithm]
name = "fedavg"

[data]
clients = 20

[model]
name = "logistic"
"""
MODEL = 4 * (64 * 10 + 10)
# With each model goes back the sum of the weights, twice, and of the losses.
DOWN, UP = MODEL, MODEL + 4 + 4


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return "small.toml"


@pytest.fixture
def plan(file, capsys):
    def command(*flags):
        main(ALGORITHMS, ["plan", file, *flags])
        return capsys.readouterr().out

    return command


def fails(capsys, argv, algorithms=ALGORITHMS):
    with pytest.raises(SystemExit) as raised:
        main(algorithms, argv)
    assert raised.value.code == 2
    return capsys.readouterr().err


def test_prints_a_step_and_the_whole_run(plan, tmp_path):
    out = plan()
    assert "small, one step of fedavg" in out
    assert "step: 5 clients" in out
    assert "whole run: 30 steps, 30 rounds, 5 of 20 clients in each step" in out
    down, up = 30 * DOWN, 30 * UP
    assert f"in every step  {down / 1e3:.3g} kB down, {up / 1e3:.3g} kB up, " in out
    assert f"together    {5 * down / 1e3:.3g} kB down, {5 * up / 1e3:.3g} kB up," in out
    assert [p.name for p in tmp_path.iterdir()] == ["small.toml"]


def test_takes_flags(plan):
    out = plan("--rounds", "7", "--cohort=2")
    assert "7 steps, 7 rounds, 2 of 20 clients" in out


def test_says_what_a_run_then_counts(file, tmp_path):
    from fad.experiment import run

    experiment = load(file, ALGORITHMS)
    task = make_task(experiment.data, experiment.model)
    algorithm = ALGORITHMS["fedavg"].build(experiment.algorithm, task)
    cost = plan_step(experiment, algorithm, task).cost()
    assert (cost.bytes_down, cost.bytes_up) == (DOWN, UP)
    small = load(file, ALGORITHMS, overrides={"rounds": 2, "eval_every": 2})
    rows = run(small, algorithm, task, tmp_path / "run", progress=False).rows
    assert rows[-1]["bytes_down"] == 2 * cost.bytes_down
    assert rows[-1]["bytes_up"] == 2 * cost.bytes_up


def test_compiles_nothing(plan):
    compiled = []

    def listen(event, duration_secs, **_):
        if "backend_compile" in event:
            compiled.append(event)

    make_task.cache_clear()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        plan()
        assert not compiled
        jax.jit(lambda x: x + 1.2345)(1.0)
        assert compiled  # the listener works
    finally:
        jax.monitoring.clear_event_listeners()


def test_writes_the_figure(plan, tmp_path):
    assert "wrote plan.png" in plan("--figure", "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_help(file, capsys):
    for argv in (["plan", "--help"], ["plan", file, "--help"]):
        with pytest.raises(SystemExit) as raised:
            main(ALGORITHMS, argv)
        assert raised.value.code == 0
        assert "--figure" in capsys.readouterr().out


def test_is_listed(capsys):
    main(ALGORITHMS, ["list"])
    assert "plan CONFIG.toml [flags]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plan"], "error: plan: give the experiment's .toml file first"),
        (["plan", "--figure", "x.png"], "error: plan: give the experiment's .toml"),
        (["plan", "smal.toml"], "error: smal.toml: no such file. Nearest in .: small."),
        (["plan", "small.toml", "--resume"], "--resume"),
        (["plan", "small.toml", "--cohort", "21"], "cohort must be <= data.clients"),
        (["plan", "small.toml", "--figure", "no/x.png"], "error: --figure no/x.png: "),
        (["plan", "small.toml", "--figure", "x.zip"], "'zip' is not supported"),
        (["plna"], "error: unknown command 'plna'. Did you mean 'plan'?"),
    ],
)
@pytest.mark.usefixtures("file")
def test_message(capsys, argv, message):
    assert message in fails(capsys, argv)


def test_an_algorithm_that_communicates_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_tasks, "make_task", lambda data, model: fakes.FakeTask())
    path = tmp_path / "toy.toml"
    path.write_text(fakes.TOML)
    err = fails(capsys, ["plan", str(path)], fakes.ALGORITHMS)
    assert "error: fad.plan(step): the function holds no federated primitive" in err
