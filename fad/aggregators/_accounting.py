"""What rounds with Gaussian noise cost in privacy, by Google's dp-accounting."""

from typing import Any, Literal

from fad import _optional
from fad._errors import FadError, nearest
from fad.aggregators._adaptive_clip import check_indicator_noise
from fad.aggregators._checks import check_number

Accountant = Literal["pld", "rdp"]


def epsilon(
    *,
    noise_multiplier: float,
    clients: float,
    population: int,
    rounds: int,
    delta: float,
    indicator_noise: float | None = None,
    accountant: Accountant = "pld",
) -> float:
    """Return the epsilon of rounds with ``dp_fedavg`` or ``adaptive_clip``.

    The mechanism is Gaussian, on Poisson samples with the probability ``clients /
    population``, composed ``rounds`` times; neighbours differ by one client, added or
    removed. It is the user's to sample so: cohorts of a fixed size are another
    mechanism, for which this is no bound. The numbers are the library's.

    Args:
        noise_multiplier: The aggregator's own.
        clients: How many clients a round expects, the aggregator's own.
        population: How many clients there are.
        rounds: How many rounds are run.
        delta: The probability in the definition of privacy, in (0, 1).
        indicator_noise: ``adaptive_clip``'s, to be checked. It costs nothing more:
            ``noise_multiplier`` is that of both its sums.
        accountant: ``pld`` (privacy loss distributions, tight, slow where epsilon is
            in the hundreds) or ``rdp`` (Rényi divergences, faster, often 10 % more).

    Returns:
        Epsilon; infinite without noise.

    Raises:
        FadError: dp-accounting is not installed, or a number is out of range.

    Example:
        >>> options = dict(clients=100, population=10_000, rounds=1000, delta=1e-5)
        >>> round(epsilon(noise_multiplier=1.0, accountant="rdp", **options), 2)
        2.1

    References:
        Abadi et al., Deep Learning with Differential Privacy, CCS 2016.
    """
    call = "fad.aggregators.epsilon"
    check_number(call, "noise_multiplier", noise_multiplier, low=0)
    if indicator_noise is not None:
        check_indicator_noise(call, noise_multiplier, indicator_noise)
    library, fresh = _library(call, accountant)
    composed = _composed(library, call, clients, population, rounds, delta)
    spent = fresh().compose(composed(noise_multiplier))
    return float(spent.get_epsilon(delta))


def noise_multiplier_for(
    *,
    epsilon: float,
    clients: float,
    population: int,
    rounds: int,
    delta: float,
    indicator_noise: float | None = None,
    accountant: Accountant = "pld",
) -> float:
    """Return the least noise multiplier with which rounds cost ``epsilon`` at most.

    The inverse of ``fad.aggregators.epsilon``, to 1e-6 and never too small; with
    ``pld`` it takes seconds.

    Args:
        epsilon: What may be spent, positive.
        clients: How many clients a round expects.
        population: How many clients there are.
        rounds: How many rounds are run.
        delta: The probability in the definition of privacy, in (0, 1).
        indicator_noise: ``adaptive_clip``'s, to be checked against what comes out.
        accountant: ``pld`` or ``rdp``.

    Returns:
        The noise multiplier.

    Raises:
        FadError: As ``fad.aggregators.epsilon``.

    Example:
        >>> options = dict(clients=100, population=10_000, rounds=1000, delta=1e-5)
        >>> round(noise_multiplier_for(epsilon=2.0, accountant="rdp", **options), 2)
        1.02
    """
    call = "fad.aggregators.noise_multiplier_for"
    check_number(call, "epsilon", epsilon)
    library, fresh = _library(call, accountant)
    composed = _composed(library, call, clients, population, rounds, delta)
    found = library.calibrate_dp_mechanism(fresh, composed, epsilon, delta)
    if indicator_noise is not None:
        check_indicator_noise(call, found, indicator_noise)
    return float(found)


def _composed(
    library: Any, call: str, clients: Any, population: Any, rounds: Any, delta: Any
) -> Any:
    """Return ``noise multiplier -> event`` of all rounds."""
    check_number(call, "clients", clients)
    check_number(call, "population", population, low=clients)
    check_number(call, "delta", delta)
    if not delta < 1:
        raise FadError(f"{call}: expected delta below 1, got {delta!r}.")
    if not isinstance(rounds, int) or rounds < 1:
        raise FadError(f"{call}: expected rounds as an int from 1, got {rounds!r}.")

    def event(noise_multiplier: float) -> Any:
        noise = library.GaussianDpEvent(float(noise_multiplier))
        one = library.PoissonSampledDpEvent(clients / population, noise)
        return library.SelfComposedDpEvent(one, rounds)

    return event


def _library(call: str, accountant: str) -> tuple[Any, Any]:
    """Return dp-accounting, and what makes an accountant of this kind."""
    known = {"pld": "PLDAccountant", "rdp": "RdpAccountant"}
    if accountant not in known:
        raise FadError(
            f"{call}: there is no such accountant. "
            f"{nearest(accountant, known, 'accountants')}"
        )
    library = _optional.require(
        "dp_accounting", FadError, f"{call} needs", extra="private"
    )
    return library, getattr(getattr(library, accountant), known[accountant])
