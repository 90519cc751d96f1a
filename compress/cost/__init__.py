"""What a plan will cost on a network, known before it is carried out."""

from compress.cost.crossover import break_even_bandwidth, break_even_workers
from compress.cost.measure import measure_rates
from compress.cost.network import Network
from compress.cost.predict import Cost, ParameterCost, predict
from compress.cost.rates import Rates
from compress.cost.units import parse_bandwidth, parse_seconds

__all__ = [
    "Cost",
    "Network",
    "ParameterCost",
    "Rates",
    "break_even_bandwidth",
    "break_even_workers",
    "measure_rates",
    "parse_bandwidth",
    "parse_seconds",
    "predict",
]
