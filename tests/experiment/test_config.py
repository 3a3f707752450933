import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from fad import ConfigError
from fad.experiment import DataConfig, Experiment, _toml, dump, load
from fad.experiment._cohorts import cohort_options
from tests.experiment.fakes import ALGORITHMS, TOML, Config, experiment

pytestmark = pytest.mark.once


def load_text(tmp_path, text: str, **options: Any) -> Experiment:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return load(path, ALGORITHMS, **options)


def test_load_uses_dataclass_defaults_below_the_file(tmp_path):
    loaded = load_text(
        tmp_path, TOML.replace('"toy"\n\n[data]', '"toy"\nlr = 1\n[data]')
    )
    assert loaded == experiment(algorithm=Config(lr=1.0))
    assert type(loaded.algorithm.lr) is float


def test_load_of_dump_is_equal(tmp_path):
    config = experiment(
        seed=3,
        algorithm=Config(lr=1e-5, momentum=0.9, bad="tree"),
        data=DataConfig(partition="dirichlet", clients=7, alpha=1e22),
    )
    assert load_text(tmp_path, dump(config)) == config


@dataclasses.dataclass(frozen=True)
class Odd:
    text: str = ""
    number: float = 0.0
    size: int | None = None
    both: int | str | None = None
    flags: tuple[bool, ...] = ()
    pair: tuple[int, str] = (0, "")
    choice: Literal["a", 1, True] = "a"


@pytest.mark.parametrize(
    "odd",
    [
        Odd(text='quote " and \\ and \n newline \t tab \x00 \x7f é 漢 \U0001f600'),
        Odd(text="'''\"\"\"", number=1e-300),
        Odd(number=float("inf"), size=3, both="x", flags=(True, False)),
        Odd(both=4, pair=(1, "]"), choice=True),
        Odd(choice=1, number=-0.0),
    ],
)
def test_dumps_round_trips(odd):
    raw = tomllib.loads(_toml.dumps(odd))
    back = _toml.convert(Odd, raw, where="odd.toml")
    assert back == odd
    assert type(back.choice) is type(odd.choice)


def test_dumps_refuses_none_without_a_none_default():
    @dataclasses.dataclass(frozen=True)
    class Size:
        size: int | None = 3

    with pytest.raises(ConfigError, match="size: None cannot be written, for TOML"):
        _toml.dumps(Size(None))


def replaced(old: str, new: str) -> str:
    assert old in TOML
    return TOML.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            replaced("rounds = 6", "rounds = 6\nepoch = 1"),
            "x.toml: epoch: unknown key. Did you mean 'epochs'? Known keys: algorithm, "
            "availability, batch_size, bilevel, checkpoint_every, chunk, cohort, data",
        ),
        (
            replaced("clients = 4", "clients = 4\nalpa = 1.0"),
            "x.toml: data.alpa: unknown key. Did you mean 'alpha'?",
        ),
        (
            replaced("rounds = 6", "rounds = 2.5"),
            "x.toml: rounds: expected int, got 2.5 (float)",
        ),
        (
            replaced("rounds = 6", "rounds = true"),
            "x.toml: rounds: expected int, got True (bool)",
        ),
        (
            replaced("clients = 4", 'clients = 4\nalpha = "a"'),
            "x.toml: data.alpha: expected float, got 'a' (str)",
        ),
        (
            replaced("clients = 4", "clients = 4\nalpha = true"),
            "x.toml: data.alpha: expected float, got True (bool)",
        ),
        (
            replaced("[model]", '[model]\nname = "mlpp"'),
            "x.toml: model.name: must be one of 'mlp', 'logistic', 'fednest_mlp', "
            "'fedavg_cnn', 'fedsep_cnn', 'resnet18', 'char_lstm', 'char_transformer'; "
            "got 'mlpp'. Did you mean 'mlp'?",
        ),
        (
            replaced("[model]", "[model]\nhidden = 3"),
            "x.toml: model.hidden: expected an array [...], got 3 (int)",
        ),
        (
            replaced("[model]", "[model]\nhidden = [3, 2.0]"),
            "x.toml: model.hidden[1]: expected int, got 2.0 (float)",
        ),
        (
            replaced("[data]\nclients = 4", "").replace("[alg", "data = 4\n[alg"),
            "x.toml: data: expected a table [data], got 4 (int)",
        ),
        (replaced("rounds = 6\n", ""), "x.toml: rounds: missing, and there is no"),
        (
            replaced("clients = 4", ""),
            "x.toml: [data]: clients: missing; partition 'iid' needs their number",
        ),
        (
            replaced("rounds = 6\ne", "e").replace("cohort = 2\n", ""),
            "x.toml: rounds, cohort: missing, and there is no default. Add them at the",
        ),
        (
            replaced('[algorithm]\nname = "toy"', ""),
            'x.toml: algorithm.name: missing. Add [algorithm] with name = "...". '
            "Known algorithms: toy.",
        ),
        (
            replaced('[algorithm]\nname = "toy"', '[algorithm]\nname = "toi"'),
            "x.toml: algorithm.name: unknown algorithm 'toi'. Did you mean 'toy'? "
            "Known algorithms: toy.",
        ),
        (
            replaced('name = "toy"\n\n[', 'name = "toy"\nlr = 0\n['),
            "x.toml: [algorithm]: lr must be > 0, got 0.0",
        ),
        (
            replaced("rounds = 6", "rounds = "),
            "x.toml:2: not valid TOML: Invalid value",
        ),
        (replaced("rounds = 6", "rounds = 0"), "x.toml: rounds must be >= 1, got 0"),
        (replaced("rounds = 6", "rounds = 6\nseed = -1"), "seed must be >= 0, got -1"),
        (
            replaced("rounds = 6", "rounds = 6\nchunk = 1.0"),
            "x.toml: chunk: expected int or 'auto', got 1.0 (float)",
        ),
        (
            replaced("rounds = 6", 'rounds = 6\nchunk = "all"'),
            "x.toml: chunk: expected int or 'auto', got 'all' (str)",
        ),
        (
            replaced("rounds = 6", "rounds = 6\nchunk = true"),
            "x.toml: chunk: expected int or 'auto', got True (bool)",
        ),
        (replaced("rounds = 6", "rounds = 6\nchunk = 0"), "chunk must be >= 1, got 0"),
        (
            replaced("cohort = 2", "cohort = 5"),
            "cohort must be <= data.clients, got cohort = 5 and data.clients = 4",
        ),
        (
            replaced('name = "toy"\nrounds', 'name = "../toy"\nrounds'),
            "name must be a folder name of letters, digits and _ . + -, got '../toy'",
        ),
        (
            replaced("clients = 4", "clients = 4\nalpha = 0"),
            "x.toml: [data]: alpha must be > 0, got 0.0",
        ),
        (
            replaced("[model]", "[model]\nhidden = [0]"),
            "x.toml: [model]: hidden widths must be >= 1, got [0]",
        ),
        (
            replaced("[model]", "[model]\nwidth = 0"),
            "x.toml: [model]: width must be >= 1, got 0",
        ),
        (
            replaced("clients = 4", 'clients = 4\npartition = "natural"'),
            "x.toml: [data]: clients = 4, but a natural partition has the clients that",
        ),
        (
            replaced("clients = 4", "clients = 4\nsigma = 0.5"),
            "x.toml: [data]: sigma is for partition 'lognormal' alone",
        ),
        (
            replaced("clients = 4", "clients = 4\nbeta = 0.5"),
            "x.toml: [data]: beta is for the set 'synthetic' alone",
        ),
        (
            replaced("clients = 4", 'clients = 4\nset="synthetic"\nclients_by = "y"'),
            "x.toml: [data]: clients_by: the clients of 'synthetic' have no columns",
        ),
        (
            replaced(
                "clients = 4", 'clients = 4\nset="synthetic"\npartition = "dirichlet"'
            ),
            "x.toml: [data]: alpha is that of 'synthetic' and cannot be that of part",
        ),
        (
            replaced("clients = 4", "clients = 0"),
            "x.toml: [data]: clients must be >= 1, got 0",
        ),
        (
            replaced(
                "clients = 4",
                'clients = 4\npartition = "hierarchical"\nalpha_fine = 0',
            ),
            "x.toml: [data]: alpha_fine must be > 0, got 0.0",
        ),
        (
            replaced("clients = 4", "clients = 4\ntest_fraction = 1"),
            "x.toml: [data]: test_fraction must be in (0, 1), got 1.0",
        ),
        (
            replaced("clients = 4", "clients = 4\nlabel_noise = -0.1"),
            "x.toml: [data]: label_noise must be in [0, 1], got -0.1",
        ),
        (
            replaced("clients = 4", "clients = 4\nnoisy_clients = 2"),
            "x.toml: [data]: noisy_clients must be in [0, 1], got 2.0",
        ),
        (
            replaced("clients = 4", "clients = 4\nnoisy_clients = 0.5"),
            "x.toml: [data]: noisy_clients needs a label_noise above 0",
        ),
        (
            replaced("clients = 4", "clients = 4\nvalidation_fraction = 1"),
            "x.toml: [data]: validation_fraction must be in [0, 1), got 1.0",
        ),
        (
            replaced("clients = 4", "clients = 4\nclass_sizes = [3, 0]"),
            "x.toml: [data]: class_sizes must be >= 1, got [3, 0]",
        ),
        (
            replaced("clients = 4", "clients = 4\nshrink = 0"),
            "x.toml: [data]: shrink must be >= 1, got 0",
        ),
        (
            replaced("clients = 4", "clients = 4\ntest_examples = 0"),
            "x.toml: [data]: test_examples must be >= 1, got 0",
        ),
        (
            replaced("clients = 4", 'partition = "natural"\nclass_sizes = [3]'),
            "x.toml: [data]: class_sizes is not for a natural partition",
        ),
        (
            replaced("cohort = 2", "cohort = 2\navailability = 0"),
            "x.toml: availability must be in (0, 1], got 0.0",
        ),
        (
            replaced("cohort = 2", "cohort = 2\nmax_examples = 0"),
            "x.toml: max_examples must be >= 1, got 0",
        ),
        (
            replaced("cohort = 2", "cohort = 2\ntiers = 0"),
            "x.toml: tiers must be >= 1, got 0",
        ),
        (
            replaced("cohort = 2", "cohort = 3\ntiers = 2"),
            "x.toml: cohort must be a multiple of tiers, got cohort = 3 and tiers = 2",
        ),
        (
            replaced("cohort = 2", 'cohort = 2\ntiers_by = "rounds"'),
            "x.toml: tiers_by: must be one of 'client', 'round'; got 'rounds'. Did you",
        ),
    ],
)
def test_message(tmp_path, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_text(tmp_path, text)


@pytest.mark.parametrize(("line", "chunk"), [("", None), ("2", 2), ('"auto"', "auto")])
def test_chunk(tmp_path, line, chunk):
    line = f"chunk = {line}\n" if line else ""
    loaded = load_text(tmp_path, line + TOML)
    assert loaded == experiment(chunk=chunk)
    assert load_text(tmp_path, dump(loaded)) == loaded


def test_tiers_reach_the_cohorts(tmp_path):
    text = replaced("cohort = 2", 'cohort = 2\ntiers = 2\ntiers_by = "round"')
    loaded = load_text(tmp_path, text)
    assert load_text(tmp_path, dump(loaded)) == loaded
    options = cohort_options(loaded, 4)
    assert (options["tiers"], options["tiers_by"]) == (2, "round")
    plain = cohort_options(experiment(), 4)
    assert (plain["tiers"], plain["tiers_by"]) == (1, "client")


def test_an_algorithm_with_widths_has_a_tier_for_each():
    @dataclasses.dataclass(frozen=True)
    class Widths:
        widths: tuple[float, ...] = (1.0, 0.5)

    algorithm: Any = Widths()
    assert experiment(algorithm=algorithm, tiers=2).tiers == 2
    match = (
        r"algorithm\.widths has 2 widths, one for each tier, and tiers = 1: set "
        r"tiers = 2"
    )
    with pytest.raises(ValueError, match=match):
        experiment(algorithm=algorithm)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"size": 1.5}, "x: size: expected int, got 1.5 (float)"),
        ({"both": 1.5}, "x: both: expected int or str, got 1.5 (float)"),
        ({"pair": [1]}, "x: pair: expected an array of 2 values, got [1] (list)"),
        ({"choice": 1.0}, "x: choice: must be one of 'a', 1, True; got 1.0."),
    ],
)
def test_message_of_other_types(raw, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        _toml.convert(Odd, raw, where="x")


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "digits_fedavg.toml").touch()
    (tmp_path / "other.toml").touch()
    with pytest.raises(
        ConfigError, match=r"no such file. Nearest in .*: digits_fedavg"
    ):
        load(tmp_path / "digits_fedavgg.toml", ALGORITHMS)
    with pytest.raises(ConfigError, match=r"The folder .*none does not exist either"):
        load(tmp_path / "none" / "x.toml", ALGORITHMS)


def test_missing_file_in_an_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no \.toml file in "):
        load(tmp_path / "x.toml", ALGORITHMS)


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"name = \xff")
    with pytest.raises(ConfigError, match="not valid TOML: not UTF-8 text"):
        load(tmp_path / "x.toml", ALGORITHMS)


def test_overrides(tmp_path):
    overrides = {"algorithm.lr": 2, "rounds": 7}
    loaded = load_text(tmp_path, TOML, overrides=overrides)
    assert loaded == experiment(rounds=7, algorithm=Config(lr=2.0))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("algorithm.lrr", "x.toml (run 'a'): algorithm.lrr: unknown key. Did you mean"),
        ("rounds.x", "x.toml (run 'a'): rounds.x: rounds is a value, not a table"),
    ],
)
def test_override_message(tmp_path, key, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_text(tmp_path, TOML, overrides={key: 1}, note=" (run 'a')")


def test_config_named_otherwise_is_refused(config_file):
    class Other:
        @dataclasses.dataclass(frozen=True)
        class Config:
            name: ClassVar[str] = "other"

    with pytest.raises(ConfigError, match="Config is named 'other': a Config is named"):
        load(config_file, {"toy": Other})


def test_type_that_no_config_can_have():
    @dataclasses.dataclass(frozen=True)
    class Wrong:
        x: bytes

    with pytest.raises(TypeError, match="x: a config field cannot be of type"):
        _toml.convert(Wrong, {"x": "a"}, where="x")
    with pytest.raises(TypeError, match="cannot write b'a' as TOML"):
        _toml.dumps(Wrong(b"a"))


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "x.toml").touch()

    def read_text(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read: Permission"):
        load(tmp_path / "x.toml", ALGORITHMS)
