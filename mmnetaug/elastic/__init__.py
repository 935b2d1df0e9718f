"""Width-elastic networks: a tiny network and its augmented networks in one module. Depends on torch alone."""

from .cut import cut_channels
from .graph.export import TraceError, evaluating
from .graph.rules import register_rule
from .graph.structure import NotUnderstood, Value
from .groups import ChannelGroup
from .layers import Elastic, tiny_gradients_in_place
from .make import make_elastic
from .sort import sort_hidden_channels
from .space import ElasticSpace, base_state_dict, fill_new_channels, find_spaces, tiny_statistics_kept, tiny_storage

__all__ = [
    "ChannelGroup",
    "Elastic",
    "ElasticSpace",
    "NotUnderstood",
    "TraceError",
    "Value",
    "base_state_dict",
    "cut_channels",
    "evaluating",
    "fill_new_channels",
    "find_spaces",
    "make_elastic",
    "register_rule",
    "sort_hidden_channels",
    "tiny_gradients_in_place",
    "tiny_statistics_kept",
    "tiny_storage",
]
