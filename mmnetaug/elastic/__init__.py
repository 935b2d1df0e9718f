"""Width-elastic networks: one network that holds a tiny network and all its augmented ones. Knows torch only."""

from .convert import make_elastic
from .groups import ChannelGroup
from .layers import Elastic
from .sort import sort_hidden_channels
from .space import ElasticSpace, base_state_dict, fill_new_channels, find_spaces, tiny_storage
from .trace import TraceError, evaluating

__all__ = [
    "ChannelGroup",
    "Elastic",
    "ElasticSpace",
    "TraceError",
    "base_state_dict",
    "evaluating",
    "fill_new_channels",
    "find_spaces",
    "make_elastic",
    "sort_hidden_channels",
    "tiny_storage",
]
