"""Modules: parameters and the operations that use them."""

from lucid.nn import init as init
from lucid.nn.dropout import Dropout as Dropout
from lucid.nn.embedding import Embedding as Embedding
from lucid.nn.layer_norm import LayerNorm as LayerNorm
from lucid.nn.linear import Linear as Linear
from lucid.nn.module import Module as Module
from lucid.nn.module import ModuleList as ModuleList
from lucid.nn.parameter import Parameter as Parameter

__all__ = ["Dropout", "Embedding", "LayerNorm", "Linear", "Module", "ModuleList", "Parameter", "init"]
