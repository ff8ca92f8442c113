"""Initial weights that many networks share."""

from __future__ import annotations

from torch import nn


def init_normal(
    network: nn.Module, std: float, *, truncated: bool = False, zero_bias: bool = True
) -> None:
    """Draw the weights of all linear layers and embeddings from a normal distribution.

    Args:
        network: whose layers are changed in place, in the order of its modules.
        std: standard deviation.
        truncated: cut the distribution to [-2, 2] (of the weights, as `nn.init.trunc_normal_`).
        zero_bias: also set the biases of linear layers to zero.
    """
    draw = nn.init.trunc_normal_ if truncated else nn.init.normal_
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            draw(module.weight, std=std)
        if zero_bias and isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def init_embeddings(network: nn.Module, std: float) -> None:
    """Draw the weights of all embeddings from a normal distribution."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)


def init_xavier(network: nn.Module) -> None:
    """Draw the weights of all linear layers by Glorot's uniform rule; biases start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
