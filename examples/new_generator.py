"""A generator of your own in one file: written, trained on a tokenizer's codes, sampled.

    python examples/new_generator.py outputs/own/model photos new.png

`Recent` predicts a code from the few before it. It is no good model, but a whole one: it keeps the
contract of `argen.generators.base.Generator`, so argen's pipeline, guidance, filters and keyed
noise work with it unchanged. CONTRIBUTING.md shows how such a class becomes a preset with tests. A
saved model that names a class outside argen is loaded with `argen.load(DIR, trust=True)`.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import argen
from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import ClassConditioner, Cond
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.plan import Plan


@dataclass
class RecentState:
    """Decoding state: the condition (R, D) and the codes so far (R, l), padded in front."""

    cond_RD: Tensor
    ids_Rl: Tensor


class Recent(Generator):
    """Next-token prediction from the last `context` codes and the class.

    Args:
        spec: discrete codes with one id a position.
        conditioner: gives the vector of the class.
        dim: width D.
        context: how many codes are read.
    """

    def __init__(
        self, *, spec: argen.CodeSpec, conditioner: ClassConditioner, dim: int, context: int
    ) -> None:
        super().__init__()
        self.spec = spec
        self.require(spec, {"discrete": "ids"})
        self.plan = Plan.raster(spec, lookahead=False)  # one code a pass, in the tokenizer's order
        self.conditioner, self.context, self.pad = conditioner, context, spec.vocab_size
        self.embed = nn.Embedding(spec.vocab_size + 1, dim)  # one row more, for what lies before
        self.place = nn.Embedding(spec.length, dim)
        self.network = nn.Sequential(
            nn.Linear(context * dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.LayerNorm(dim)
        )
        self.head: CategoricalHead = CategoricalHead(dim, spec.vocab_size)

    def loss(self, codes: Tensor, cond: Cond, *, noise: object = None) -> LossOutput:
        """Return the mean cross entropy in nats of codes (B, L)."""
        nll_BL = self.head.loss(self.score(codes, cond), codes)
        loss = nll_BL.mean()
        return LossOutput(loss, {"bits_per_code": loss.detach() / math.log(2)}, nll_BL)

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return logits (B, L, V) of every position given the codes before it."""
        padded = torch.cat((self._padding(len(codes)), codes[:, :-1]), dim=1)
        return self._logits(padded.unfold(1, self.context, 1), cond.vector_BD, first=0)

    def start(self, cond: Cond, *, longest_draft: int = 0) -> RecentState:
        """Return a state that has read nothing."""
        assert cond.vector_BD is not None
        return RecentState(cond.vector_BD, self._padding(len(cond.vector_BD)))

    def predict(self, state: RecentState, draft: Tensor | None = None) -> Tensor:
        """Return logits of the next code, (R, 1, V)."""
        recent = state.ids_Rl[:, None, -self.context :]
        return self._logits(recent, state.cond_RD, first=state.ids_Rl.shape[1] - self.context)

    def commit(self, state: RecentState, codes: Tensor, counts: Tensor | None = None) -> None:
        """Fix the next code (R, 1)."""
        state.ids_Rl = torch.cat((state.ids_Rl, codes), dim=1)

    def _padding(self, rows: int) -> Tensor:
        return torch.full((rows, self.context), self.pad, device=self.embed.weight.device)

    def _logits(self, recent_Bnk: Tensor, cond_BD: Tensor | None, *, first: int) -> Tensor:
        """Logits (B, n, V) of n positions from `first` on, each with the k codes before it."""
        assert cond_BD is not None
        n = recent_Bnk.shape[1]
        x_BnD = self.network(self.embed(recent_Bnk).flatten(2))
        places = torch.arange(first, first + n, device=x_BnD.device)
        return self.head(x_BnD + self.place(places) + cond_BD[:, None])


def read_folder(folder: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (N, 3, H, W) in [-1, 1], labels (N,) and class names of a folder."""
    read = v2.Compose([v2.Resize(min(size)), v2.CenterCrop(size), v2.PILToTensor()])
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, i) for i, name in enumerate(names) for path in sorted((folder / name).glob("*"))
    ]
    images = torch.stack([read(Image.open(path).convert("RGB")) for path, _ in files])
    return images / 127.5 - 1, torch.tensor([label for _, label in files]), names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model directory; only its tokenizer is used")
    parser.add_argument("images", type=Path, help="folder with one sub-directory a class")
    parser.add_argument("out", type=Path, help="PNG file for the drawn images")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--context", type=int, default=8, help="codes that are read")
    options = parser.parse_args()
    torch.manual_seed(0)

    tokenizer = argen.load(options.model).tokenizer
    images, labels, names = read_folder(options.images, tokenizer.image_size)
    with torch.inference_mode():
        codes = tokenizer.encode(images)
    codes = codes.clone()  # an ordinary tensor, which training may read

    dim = 64
    conditioner = ClassConditioner(num_classes=len(names), dim=dim, drop_rate=0.1)
    model = Recent(
        spec=tokenizer.spec, conditioner=conditioner, dim=dim, context=options.context
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(options.steps):
        batch = torch.randint(len(codes), (16,))
        drop_B = torch.rand(len(batch)) < conditioner.drop_rate  # for guidance
        result = model.loss(codes[batch], conditioner(labels[batch], drop_B=drop_B))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: {result.metrics['bits_per_code']:.3f} bits a code")

    pipe = argen.Pipeline(tokenizer=tokenizer, generator=model, class_names=tuple(names))
    pipe("all", n=4, seed=0, cfg=1.5).grid().save(options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
