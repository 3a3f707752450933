"""What auto picks, what the plans say, and what each mode refuses."""

import re

import jax
import jax.numpy as jnp
import pytest

import fad
from fad.modes import Candidate
from tests.modes.programs import DIM, server_step, training, weighted


def cost(fn, args, **options):
    return fad.plan(fad.grad(fn, **options))(*args).cost()


@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_rounds_of_each_mode(rounds):
    program = training(rounds)
    primal = fad.plan(program.fn)(*program.args).cost()
    assert primal.rounds == rounds + 1
    for argnums in (0, 1, (0, 1)):
        of = {
            mode: cost(program.fn, program.args, argnums=argnums, mode=mode)
            for mode in ("forward", "mixed", "mixed-products", "reverse")
        }
        assert of["forward"].rounds == rounds + 1
        assert of["mixed"].rounds == rounds + 1
        assert of["reverse"].rounds == 2 * rounds + 1
        assert of["forward"].client_state_bytes == 0
        assert of["mixed"].client_state_bytes == 0
        assert of["mixed-products"].rounds == rounds + 1
        assert of["mixed-products"].client_state_bytes == 0
        assert of["mixed-products"].client_flops < of["forward"].client_flops
        assert not of["forward"].same_cohort
        assert not of["mixed"].same_cohort
        assert of["reverse"].same_cohort


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("rounds", [1, 3, 10])
def test_bytes_of_the_server_step(rounds, scan):
    """Closed formulas for one number; d is the model, in float32."""
    program, d = server_step(rounds, scan=scan), 4 * DIM
    lr = 4 * rounds  # the client step is sent each round
    primal = fad.plan(program.fn)(*program.args).cost()
    assert primal.bytes_down == (rounds + 1) * d + lr
    assert primal.bytes_up == rounds * d + 4
    # The first round's model has no tangent, so its broadcast and sum carry none; a
    # scan's carry has one from the start. The gradient alone needs no loss: 4 bytes.
    known_zero = 0 if scan else d
    ahead = cost(program.fn, program.args, mode="forward")
    assert ahead.bytes_down == primal.bytes_down + (rounds + 1) * d - known_zero
    assert ahead.bytes_up == primal.bytes_up + rounds * d - known_zero
    # The last round sends 1/n and no tangent down, and one gradient up.
    mixed = cost(program.fn, program.args, mode="mixed")
    assert mixed.bytes_down == primal.bytes_down + rounds * d + 4 - known_zero
    assert mixed.bytes_up == primal.bytes_up + (rounds + 1) * d - 4 - known_zero
    # Or it sends the tangent down after all, and one number up.
    products = cost(program.fn, program.args, mode="mixed-products")
    assert products.bytes_down == ahead.bytes_down
    assert products.bytes_up == ahead.bytes_up
    back = cost(program.fn, program.args, mode="reverse")
    assert back.rounds == 2 * rounds
    assert back.bytes_up == primal.bytes_up + rounds * d - 4


def test_one_server_step_goes_forward():
    program = server_step(3)
    choice = fad.grad(program.fn, objective="rounds").explain(*program.args)
    assert choice.candidate == Candidate("forward", True)


def test_many_client_weights_go_reverse():
    program = weighted(1000)
    gradient = fad.grad(program.fn, objective="client_flops")
    assert gradient.explain(*program.args).candidate.mode == "reverse"


def test_a_loss_at_the_last_round_goes_mixed():
    """Several inputs, no client to come back, and a mean loss at the end."""
    program = training(3)
    gradient = fad.grad(program.fn, 1, constraints="fresh_cohorts")
    assert gradient.explain(*program.args).candidate.mode == "mixed"


@pytest.mark.parametrize("objective", ["rounds", "bytes", "client_flops", "memory"])
def test_a_constraint_is_never_broken(objective):
    program = training(3)
    options = {"argnums": (0, 1), "objective": objective}
    stateless = fad.grad(program.fn, constraints="stateless", **options)
    fresh = fad.grad(program.fn, constraints=("fresh_cohorts",), **options)
    assert stateless.explain(*program.args).cost.client_state_bytes == 0
    assert not fresh.explain(*program.args).cost.same_cohort


def test_weights_decide():
    program = training(3)
    by_rounds = fad.grad(program.fn, 1, objective={"rounds": 1.0})
    by_bytes = fad.grad(program.fn, 1, objective={"bytes": 1.0})
    assert by_rounds.explain(*program.args).cost.rounds == 4
    assert by_bytes.explain(*program.args).candidate.mode == "reverse"


def test_explain_reads():
    program = training(3)
    text = str(fad.grad(program.fn, 1, constraints="stateless").explain(*program.args))
    assert "the least 1 rounds + 1 bytes_down" in text
    assert "client_state_bytes" in text
    for name in ("forward, recompute", "mixed, recompute", "reverse, keep"):
        assert name in text


def test_explain_says_what_does_not_apply():
    @fad.program
    def in_a_loop(w, data):
        def body(w, _):
            return w + fad.mean(fad.map(lambda x: jnp.tanh(w * x), data)), None

        return jax.lax.scan(body, w, None, length=2)[0]

    data = fad.AtClients(jnp.arange(3.0))
    text = str(fad.grad(in_a_loop).explain(1.0, data))
    assert re.search(r"mixed, recompute +does not apply: mixed mode does", text)
    with pytest.raises(fad.PlanError, match="the last round stands inside a loop"):
        fad.grad(in_a_loop, mode="mixed")(1.0, data)


def test_mixed_refuses_client_state_that_depends_on_the_inputs():
    @fad.program
    def keeps(w, data):
        local = fad.map(lambda x: w * x, data)
        server = fad.mean(local)
        return fad.mean(fad.map(lambda a, b: a * b, local, fad.broadcast(server)))

    data = fad.AtClients(jnp.arange(3.0))
    with pytest.raises(
        fad.PlanError, match=r"a client value, f32\[\] per client, that"
    ):
        fad.grad(keeps, mode="mixed")(1.0, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "froward"}, "unknown mode 'froward'. Did you mean 'forward'"),
        ({"mode": 3}, "unknown mode 3"),
        ({"objective": "speed"}, "unknown objective 'speed'. Known: rounds, bytes"),
        ({"objective": {"spam": 1}}, "unknown item 'spam'. Known: rounds"),
        ({"constraints": ("cheap",)}, "unknown constraint 'cheap'. Known: stateless"),
        ({"constraints": {"spam": 1}}, "constraints=.*unknown item 'spam'"),
        ({"argnums": 7}, "argnums=7, but the call has 4 positional"),
        ({"argnums": "w"}, "argnums='w', but the call has 4 positional"),
    ],
)
def test_options(options, message):
    program = training(1)
    with pytest.raises(fad.FadError, match=message):
        fad.grad(program.fn, **options)(*program.args)


@pytest.mark.parametrize("mode", ["forward", "reverse", "mixed", "auto"])
def test_no_scalar(mode):
    program = training(1)
    with pytest.raises(fad.FadError, match=r"returned float32\[2\]; expected one real"):
        fad.grad(lambda *a: program.fn(*a) * jnp.ones(2), mode=mode)(*program.args)


def test_no_real_argument():
    @fad.program
    def loss(options, data):
        return fad.mean(fad.map(lambda x: options["w"] * x, data))

    data = fad.AtClients(jnp.arange(3.0))
    with pytest.raises(fad.FadError, match=r"args\[0\]\['n'\] is int 3; expected real"):
        fad.grad(loss)({"w": 1.0, "n": 3}, data)


def test_an_unmeetable_constraint_names_the_cheapest_plan():
    program = training(3)
    message = r"cheapest plan is .*, and it breaks rounds \d > 2: Cost\(rounds="
    with pytest.raises(fad.PlanError, match=message):
        fad.grad(program.fn, constraints={"rounds": 2})(*program.args)


def test_a_constraint_holds_for_a_mode_by_name():
    program = training(3)
    with pytest.raises(fad.PlanError, match="breaks same_cohort 1 > 0"):
        fad.grad(program.fn, mode="reverse", constraints="fresh_cohorts")(*program.args)


def test_products_refuse_an_unknown_mode():
    with pytest.raises(
        fad.FadError, match=r"fad.jvp: unknown mode 'auto'. Known: forw"
    ):
        fad.jvp(lambda x: x, (1.0,), (1.0,), mode="auto")
    with pytest.raises(
        fad.FadError, match=r"fad.vjp: unknown mode 'auto'. Known: forw"
    ):
        fad.vjp(lambda x: x, 1.0, mode="auto")


def test_products_refuse_what_is_more_than_maps():
    @fad.program
    def loss(w, data):
        gather = data.unsafe_gather()
        return fad.mean(fad.map(lambda x: w * x, fad.AtClients(gather + gather)))

    data = fad.AtClients(jnp.arange(3.0))
    with pytest.raises(fad.PlanError, match=r"outside fad.map, in add\. Use mode="):
        fad.grad(loss, mode="mixed-products")(1.0, data)
