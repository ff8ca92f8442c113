"""Entropies of soft assignments to sign vectors, without listing the 2^d of them.

The soft assignment of a vector z to the codes c in {-1, +1}^d is softmax(2 z.c / T). It is a
product over bits, each with its own log-odds 4 z_i / T, so that its entropy is the sum of d binary
entropies, exactly. The mean assignment of N vectors is no product, but it is a product of two
N x 2^(d/2) matrices: no N x 2^d table of probabilities is ever built.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from argen.layers.collective import all_mean

OFFSET = 1e-5  # inside logarithms, as in the published losses


def binary_entropy(log_odds: Tensor) -> Tensor:
    """Return the entropy in nats of coins with these log-odds, without loss of precision."""
    size = log_odds.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def sample_entropy(log_odds: Tensor) -> Tensor:
    """Return the mean entropy of the assignments of (..., d) log-odds, a scalar in nats."""
    return binary_entropy(log_odds).sum(-1).mean()


def joint(log_odds_Nd: Tensor) -> Tensor:
    """Return the probabilities (N, 2^d) of all bit strings, from the log-odds of each bit."""
    ones, zeros = torch.sigmoid(log_odds_Nd), torch.sigmoid(-log_odds_Nd)
    found = ones.new_ones(ones.shape[0], 1)
    for zero_N, one_N in zip(zeros.unbind(-1), ones.unbind(-1)):
        found = torch.cat((found * zero_N[:, None], found * one_N[:, None]), dim=-1)
    return found


def mean_assignment(log_odds_Nd: Tensor) -> Tensor:
    """Return the mean probability of each of the 2^d codes, over all processes' vectors."""
    half = log_odds_Nd.shape[-1] // 2
    first, second = joint(log_odds_Nd[:, :half]), joint(log_odds_Nd[:, half:])  # N 2^(d/2)
    return all_mean((second.T @ first).flatten(), log_odds_Nd.shape[0])


def entropy(probs: Tensor) -> Tensor:
    """Return -sum p log(p + 1e-5) over the last axis."""
    return -(probs * torch.log(probs + OFFSET)).sum(-1)


def clamped_entropy(probs: Tensor) -> Tensor:
    """Return -sum p log(max(p, 1e-5)) over the last axis."""
    return -(probs * probs.clamp(min=OFFSET).log()).sum(-1)


def listed_entropies(
    z_NGd: Tensor, magnitude: float, temperature: float, *, max_elements: int = 1 << 24
) -> tuple[Tensor, Tensor]:
    """Return the mean clamped entropy, and the mean assignment of each group (G, 2^d).

    The clamp couples the bits, so that all 2^d codes are listed and all their probabilities
    computed, a chunk of vectors at a time; backward computes each chunk again.

    Args:
        z_NGd: vectors in G groups.
        magnitude: codes are +magnitude and -magnitude.
        temperature: divides twice the inner products.
        max_elements: probabilities of a chunk.
    """
    N, G, d = z_NGd.shape
    powers = 2 ** torch.arange(d - 1, -1, -1, device=z_NGd.device)
    listed = torch.arange(2**d, device=z_NGd.device)[:, None] & powers  # 2^d d
    codes = torch.where(listed != 0, magnitude, -magnitude)

    def part(z: Tensor) -> tuple[Tensor, Tensor]:
        probs = torch.softmax(2 * (z @ codes.T) * (1 / temperature), dim=-1)  # n G 2^d
        return clamped_entropy(probs).sum(), probs.sum(0)

    chunks = z_NGd.split(max(1, (max_elements >> d) // G))
    sample, total = z_NGd.new_zeros(()), z_NGd.new_zeros(G, 2**d)
    for chunk in chunks:
        found = part(chunk) if len(chunks) == 1 else checkpoint(part, chunk, use_reentrant=False)
        sample, total = sample + found[0], total + found[1]
    return sample / (N * G), all_mean(total, N)


def bitwise_entropy(log_odds_Nd: Tensor) -> Tensor:
    """Return the entropy of independent bits with the mean assignment's marginals.

    An upper bound of the mean assignment's own entropy, at most d log 2 (BSQ, arXiv 2406.07548).
    """
    both = torch.stack((torch.sigmoid(log_odds_Nd), torch.sigmoid(-log_odds_Nd)), dim=-1)  # N d 2
    return entropy(all_mean(both.sum(0), log_odds_Nd.shape[0])).sum()
