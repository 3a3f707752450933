"""Experiments: configuration, run loop, metrics, checkpoints, figures, comparisons."""

from fad.experiment._cli import main as main
from fad.experiment._compare import compare as compare
from fad.experiment._comparison import Comparison as Comparison
from fad.experiment._config import DataConfig as DataConfig
from fad.experiment._config import Experiment as Experiment
from fad.experiment._config import ModelConfig as ModelConfig
from fad.experiment._config import dump as dump
from fad.experiment._config import load as load
from fad.experiment._figure import plot_run as plot_run
from fad.experiment._meta import MetaResult as MetaResult
from fad.experiment._meta import meta_train as meta_train
from fad.experiment._meta_config import AggregatorConfig as AggregatorConfig
from fad.experiment._meta_config import Federation as Federation
from fad.experiment._meta_config import MetaTraining as MetaTraining
from fad.experiment._meta_config import load_meta as load_meta
from fad.experiment._metrics import JsonlWriter as JsonlWriter
from fad.experiment._metrics import MemoryWriter as MemoryWriter
from fad.experiment._metrics import MetricWriter as MetricWriter
from fad.experiment._metrics import read_rows as read_rows
from fad.experiment._report import print_report as print_report
from fad.experiment._run import Diverged as Diverged
from fad.experiment._run import RunResult as RunResult
from fad.experiment._run import run as run
from fad.experiment._stop import Stopped as Stopped
from fad.experiment._task import make_task as make_task
