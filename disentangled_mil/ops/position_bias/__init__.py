"""Position biases: functions of the displacement between a query and a key that are added to attention scores."""

from ._biases import Bias, BiasTable, MLPBias, check_bias, log_spaced
from ._values import network_biases

__all__ = ["Bias", "BiasTable", "MLPBias", "check_bias", "log_spaced", "network_biases"]
