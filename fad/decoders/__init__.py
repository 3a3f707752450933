"""Decoders: from the parameter that is sent to the one that is learned."""

from fad.decoders._decoder import Decoder as Decoder
from fad.decoders._decoder import closed_form as closed_form
from fad.decoders._decoder import identity as identity
from fad.decoders._gaussian import gaussian as gaussian
from fad.decoders._hadamard import hadamard as hadamard
from fad.decoders._lasso import lasso as lasso
from fad.decoders._min_norm import min_norm as min_norm
from fad.decoders._minimiser import minimiser as minimiser
from fad.decoders._proximal import proximal as proximal
from fad.decoders._sketch import Sketch as Sketch
from fad.decoders._sketch import dense as dense
