"""Codes drawn from a categorical distribution that the encoder gives (arXiv 1611.01144)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import UserError
from argen.layers.noise import Noise
from argen.layers.precision import float32
from argen.tokenizers.quantizers.base import Quantized, Quantizer
from argen.tokenizers.quantizers.subset import CodeSubset
from argen.tokenizers.schedules import Scheduled, value_at


class Gumbel(Quantizer):
    """Logits over the codebook, Gumbel noise, softmax at a temperature (DALL-E, VQGAN).

    With noise, or in training, the code is drawn; otherwise it is the likeliest one.

    Args:
        codes: number of rows K.
        dim: width C of the vectors it takes and gives.
        straight_through: give the row of the drawn code in training too, with the gradient of the
            soft mixture; otherwise the mixture itself.
        temperature: of the softmax, a number or a schedule over training steps.
        used: choose among this many codes only, a list kept with the weights (see `CodeSubset`).
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        straight_through: bool = True,
        temperature: Scheduled = 1.0,
        used: int | None = None,
    ) -> None:
        super().__init__()
        if used is not None and not 0 < used <= codes:
            raise UserError(f"used={used} does not lie in [1, {codes}].")
        self.dim, self.codes = dim, codes
        self.straight_through, self.schedule = straight_through, temperature
        self.proj = nn.Linear(dim, codes)
        self.codebook = nn.Embedding(codes, dim)
        self.subset = None if used is None else CodeSubset(used)
        self.vocab_sizes = (codes if self.subset is None else self.subset.size,)
        # A tensor, so that annealing does not make a compiled model compile again.
        self.temperature: Tensor
        self.register_buffer(
            "temperature", torch.tensor(value_at(temperature, 0)), persistent=False
        )

    def at_step(self, step: int) -> None:
        """Set the temperature that the schedule has at a training step."""
        self.temperature.fill_(value_at(self.schedule, step))

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits (..., K) of vectors (..., C), over the codes in use."""
        bias = None if self.proj.bias is None else self.proj.bias.float()
        logits = F.linear(z.float(), self.proj.weight.float(), bias)
        return logits if self.subset is None else logits[..., self.subset.used]

    @float32
    def forward(self, z: Tensor, *, noise: Noise | None = None) -> Quantized:
        """Quantise `z` (B, ..., C); loss `kl`, of the codes' distribution from the uniform one."""
        logits = self.logits(z)  # (B, ..., K)
        noisy = logits + self._noise(logits, noise)
        chosen = noisy.argmax(-1)  # (B, ...)
        rows = self.codebook.weight.float()
        if self.subset is not None:
            rows = rows[self.subset.used]
        if self.training:
            soft = torch.softmax(noisy / self.temperature, dim=-1)
            if self.straight_through:
                soft = F.one_hot(chosen, soft.shape[-1]) + soft - soft.detach()
            quantized = soft @ rows  # (B, ..., C)
        else:
            quantized = F.embedding(chosen, rows)
        if self.subset is not None:
            chosen = self.subset.compress(self.subset.used[chosen])
        probs = torch.softmax(logits, dim=-1)
        kl = (probs * torch.log(probs * self.codes + 1e-10)).sum(-1).mean()
        return Quantized(z=quantized, ids=chosen, losses={"kl": kl})

    def _noise(self, logits: Tensor, noise: Noise | None) -> Tensor:
        if noise is not None:
            positions = torch.arange(logits[0, ..., 0].numel(), device=logits.device)
            return noise.gumbel(positions, (logits.shape[-1],)).view(logits.shape)
        if self.training:
            return -torch.empty_like(logits).exponential_().log()
        return torch.zeros_like(logits)

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the vectors (..., C) of ids (...)."""
        if self.subset is not None:
            ids = self.subset.expand(ids)
        return F.embedding(ids, self.codebook.weight.float())
