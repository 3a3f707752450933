"""Aggregators: what clients put into the sum, and what the server makes of it."""

from fad.aggregators._aggregator import Aggregator as Aggregator
from fad.aggregators._aggregator import from_optax as from_optax
from fad.aggregators._frozen import load as load
from fad.aggregators._frozen import save as save
from fad.aggregators._learned import learned as learned
from fad.aggregators._learned import learned_optimizer as learned_optimizer
from fad.aggregators._make import make as make
