"""The command line: run or plan an experiment, compare several, list them."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fad import distributed
from fad._errors import ConfigError, FadError, nearest
from fad.experiment._compare import compare
from fad.experiment._config import Experiment, algorithm_name, load
from fad.experiment._lazy import require
from fad.experiment._meta import meta_train
from fad.experiment._meta_config import MetaTraining, load_meta
from fad.experiment._plan import plan_step, run_text, save_figure
from fad.experiment._processes import leads
from fad.experiment._report import print_report
from fad.experiment._run import run
from fad.experiment._tasks import build

_PROGRAM = "python -m algorithms"
_COMMANDS = {
    "CONFIG.toml [flags]": "run an experiment; a flag replaces a value of the file",
    "CONFIG.toml --help": "show its flags and the values of the file",
    "plan CONFIG.toml [flags]": "show what it will communicate, without running it",
    "compare COMPARISON.toml": "run several on one figure and in one table",
    "meta-train META.toml [flags]": "learn an aggregator by differentiating runs",
    "list": "show this text",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, beside what to run.

    Attributes:
        runs_dir: Where the run folders lie.
        resume: Continue a run that was stopped.
        overwrite: Replace a run that exists.
        progress: Show progress and the final table.
    """

    runs_dir: Path = Path("runs")
    resume: bool = False
    overwrite: bool = False
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """How to run one experiment.

    Attributes:
        distributed: Run as one of several processes over all their devices; the
            variables FAD_COORDINATOR, FAD_NUM_PROCESSES and FAD_PROCESS_ID, or the
            cluster, say which.
    """

    distributed: bool = False


@dataclasses.dataclass(frozen=True)
class CompareOptions(Options):
    """How to run a comparison.

    Attributes:
        page: A folder that gets the table and the figure as <name>.md and <name>.png.
    """

    page: Path | None = None


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What to make of a plan.

    Attributes:
        figure: The file to write the drawing of the plan to, a .png, .pdf or .svg.
    """

    figure: Path | None = None


def main(algorithms: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
    """Run the command line of a collection of algorithms.

    Args:
        algorithms: By name, modules with ``Config`` and ``build(config, task)``.
        argv: The arguments; those of the process without it.

    Raises:
        SystemExit: With 2 after an error message, with 130 after Ctrl-C or SIGTERM.

    Example:
        >>> main({}, ["list"])  # doctest: +ELLIPSIS
        usage:
          python -m algorithms CONFIG.toml [flags] ...
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(algorithms, arguments)
    except FadError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{str(stop) or 'interrupted'}\n")
        raise SystemExit(130) from None


def _dispatch(algorithms: Mapping[str, Any], arguments: list[str]) -> None:
    match arguments:
        case [] | ["list"] | ["-h" | "--help", *_]:
            print(_overview(algorithms))
        case ["compare", path, *flags] if not path.startswith("-"):
            _compare(algorithms, path, flags)
        case ["compare", "-h" | "--help", *_]:
            program = f"{_PROGRAM} compare FILE.toml"
            _parse(CompareOptions, CompareOptions(), ["--help"], program)
        case ["compare", *_]:
            raise ConfigError("compare: give the comparison's .toml file first")
        case ["plan", path, *flags] if not path.startswith("-"):
            _plan(algorithms, path, flags)
        case ["plan", "-h" | "--help", *_]:
            program = f"{_PROGRAM} plan FILE.toml"
            _parse(PlanOptions, PlanOptions(), ["--help"], program)
        case ["plan", *_]:
            raise ConfigError("plan: give the experiment's .toml file first")
        case ["meta-train", path, *flags] if not path.startswith("-"):
            _meta_train(path, flags)
        case ["meta-train", "-h" | "--help", *_]:
            _parse(Options, Options(), ["--help"], f"{_PROGRAM} meta-train FILE.toml")
        case ["meta-train", *_]:
            raise ConfigError("meta-train: give the meta-training's .toml file first")
        case [flag, *_] if flag.startswith("-"):
            raise ConfigError(
                f"give the experiment's .toml file before the flags, got {flag} first"
            )
        case [path, *flags]:
            _experiment(algorithms, path, flags)


def _experiment(algorithms: Mapping[str, Any], path: str, flags: list[str]) -> None:
    """Run one experiment: the file's values, then the flags'."""
    if not Path(path).suffix and not Path(path).exists():
        hint = nearest(path, ["compare", "list", "meta-train", "plan"], "commands")
        raise ConfigError(f"unknown command {path!r}. {hint} Or give a .toml file.")
    loaded = load(path, algorithms)
    experiment, options = _with_flags(loaded, RunOptions(), flags, path)
    if options.distributed:
        distributed.initialize()
    algorithm, task = build(algorithms, experiment)
    result = run(
        experiment,
        algorithm,
        task,
        options.runs_dir / experiment.name,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=options.progress,
        mesh=distributed.mesh() if options.distributed else None,
    )
    if not leads():
        return
    if options.progress:
        print_report(experiment.name, result.rows)
    print(f"wrote {result.folder}")


def _plan(algorithms: Mapping[str, Any], path: str, flags: list[str]) -> None:
    """Print what one step and the whole run will cost."""
    loaded = load(path, algorithms)
    experiment, options = _with_flags(loaded, PlanOptions(), flags, f"plan {path}")
    algorithm, task = build(algorithms, experiment)
    step = plan_step(experiment, algorithm, task)
    print(f"{experiment.name}, one step of {_name(experiment)}\n\n{step}\n")
    print(run_text(experiment, step, task.train.num_clients))
    if options.figure:
        save_figure(step, options.figure)
        print(f"wrote {options.figure}")


def _name(experiment: Experiment) -> str:
    return algorithm_name(type(experiment.algorithm))


def _compare(algorithms: Mapping[str, Any], path: str, flags: list[str]) -> None:
    program = f"{_PROGRAM} compare {path}"
    options = _parse(CompareOptions, CompareOptions(), flags, program)
    folder = compare(
        path,
        algorithms,
        runs_dir=options.runs_dir,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=options.progress,
        page=options.page,
    )
    print(f"wrote {folder}")


def _meta_train(path: str, flags: list[str]) -> None:
    """Meta-train an aggregator: the file's values, then the flags'."""
    command = f"meta-train {path}"
    loaded, schema = load_meta(path), MetaTraining
    config, options = _with_flags(loaded, Options(), flags, command, schema=schema)
    result = meta_train(
        config,
        options.runs_dir / config.name,
        resume=options.resume,
        overwrite=options.overwrite,
        progress=options.progress,
    )
    print(f"wrote {result.folder}")


def _with_flags(
    loaded: Any, options: Any, flags: list[str], command: str, *, schema: Any = None
) -> tuple[Any, Any]:
    """Return the experiment with the flags' values, and the other options."""
    conf = require("tyro").conf
    schema = schema or Experiment[type(loaded.algorithm)]
    fields = [
        ("experiment", Annotated[schema, conf.arg(name="")]),
        ("options", Annotated[type(options), conf.arg(name="")]),
    ]
    both = dataclasses.make_dataclass("Experiment", fields)
    parsed = _parse(both, both(loaded, options), flags, f"{_PROGRAM} {command}")
    return parsed.experiment, parsed.options


def _parse(schema: Any, default: Any, flags: list[str], program: str) -> Any:
    """Read the flags; a value that the schema refuses is an error as in a file."""
    tyro = require("tyro")
    try:
        # A table that may be absent is one where the file has it, not a subcommand.
        config = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(
            schema, default=default, args=flags, prog=program, config=config
        )
    except ValueError as error:
        raise ConfigError(f"flags {' '.join(flags)}: {error}") from None


def _overview(algorithms: Mapping[str, Any]) -> str:
    """Return what can be run."""
    width = max(map(len, [*_COMMANDS, *algorithms])) + 2
    lines = ["usage:"]
    lines += [f"  {_PROGRAM} {c:<{width}}{text}" for c, text in _COMMANDS.items()]
    lines += ["", "algorithms:"]
    for name, module in sorted(algorithms.items()):
        about = (module.__doc__ or "").strip().partition("\n")[0]
        lines.append(f"  {name:<{width}}{about}".rstrip())
    if configs := sorted(Path("configs").glob("**/*.toml")):
        lines += ["", "configs:", *(f"  {path}" for path in configs)]
    return "\n".join(lines)
