"""Compiling programs: client work streamed, on one device or many."""

from fad.compile._explain import Explanation as Explanation
from fad.compile._explain import SweepReport as SweepReport
from fad.compile._explain import Unstreamed as Unstreamed
from fad.compile._jit import jit as jit
from fad.compile._source import ClientStream as ClientStream
from fad.compile._source import stream as stream
