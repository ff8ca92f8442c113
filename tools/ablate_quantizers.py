"""One CNN, nine ways of quantising; the discrete ones have the same number of bits an image.

    python tools/ablate_quantizers.py                       train what is missing, seed 0
    python tools/ablate_quantizers.py seed=1 only=[vq,fsq]  some of them, another seed
    python tools/ablate_quantizers.py steps=20 out=DIR      to see that it works
    python tools/ablate_quantizers.py time=true             seconds a step, all of them interleaved

Every run leaves one JSON under benchmarks/quantizers and is skipped when that is there; a run that
was killed goes on from its last checkpoint. `tools/plot_quantizers.py` draws them.
"""

from __future__ import annotations

import logging
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from argen.build import build
from argen.data.emoji import emoji
from argen.data.images import ImageSource
from argen.evaluation.metrics import unigram_entropy_bits
from argen.recipes.run_metrics import heldout_psnr
from argen.runtime.files import write_json
from argen.runtime.presets import preset
from argen.runtime.provenance import provenance
from argen.tokenizers.base import Tokenizer
from argen.tokenizers.schedules import apply_step
from argen.training.fit import FitSettings, fit
from argen.training.optim import Optim
from argen.training.stream import Stream
from argen.training.tokenizer_task import TokenizerTask

ROOT = Path(__file__).parents[1]
HERE = "argen.tokenizers.quantizers"
SIDE, BITS = 32, 12  # pixels; bits a code
CODES = 1 << BITS
CNN = {"channels": 16, "multipliers": [1, 2, 4], "blocks": 1, "middle_attention": False}
CNN |= {"middle_blocks": 1, "norm_groups": 8}
POSITIONS = (SIDE // 4) ** 2
# Learned codebooks are 8 wide and of unit length where that is the published choice (LlamaGen).
QUANTIZERS: dict[str, dict[str, Any]] = {
    "vq": {"_target_": f"{HERE}.vq.VQ", "codes": CODES, "dim": 8, "l2_norm": True},
    "vq_revived": {
        "_target_": f"{HERE}.vq.VQ",
        "codes": CODES,
        "dim": 8,
        "l2_norm": True,
        "kmeans_steps": 10,
        "revive_below": 0.01,
    },
    "simvq": {"_target_": f"{HERE}.simvq.SimVQ", "codes": CODES, "dim": 8},
    "ibq": {"_target_": f"{HERE}.ibq.IBQ", "codes": CODES, "dim": 8},
    "fsq": {"_target_": f"{HERE}.fsq.FSQ", "levels": [8, 8, 8, 8]},
    "lfq": {"_target_": f"{HERE}.lfq.LFQ", "bits": BITS},
    "group_lfq": {"_target_": f"{HERE}.lfq.LFQ", "bits": BITS, "groups": 3},
    "bsq": {"_target_": f"{HERE}.lfq.BSQ", "bits": BITS},
    "kl": {"_target_": f"{HERE}.gaussian.Gaussian", "dim": 4, "momentum": 0.01},
}


@dataclass(frozen=True)
class Settings:
    """What the command line may say."""

    seed: int = 0
    steps: int = 1500
    only: tuple[str, ...] = tuple(QUANTIZERS)
    out: str = str(ROOT / "benchmarks" / "quantizers")
    work: str = "outputs/quantizers"  # checkpoints
    batch_size: int = 16
    lr: float = 3e-3
    # So that the rate of `kl`, in bits an image, comes near the others' 768.
    kl_weight: float = 2.5e-4
    time: bool = False
    rounds: int = 15  # of timing


def tokenizer(name: str) -> Tokenizer:
    """Return the CNN around a quantiser."""
    quantizer = QUANTIZERS[name]
    cnn, continuous = "argen.tokenizers.cnn", name == "kl"
    return build(
        {
            "_target_": "argen.tokenizers.kl.KLTokenizer" if continuous else f"{cnn}.CNNTokenizer",
            "image_size": SIDE,
            "encoder": {
                "_target_": f"{cnn}.Encoder",
                "out_channels": 8 if continuous else 16,
                **CNN,
            },
            "decoder": {
                "_target_": f"{cnn}.Decoder",
                "in_channels": 4 if continuous else 16,
                **CNN,
            },
            "quantizer": quantizer,
        },
        trust=True,
    )


def task(name: str, settings: Settings) -> TokenizerTask:
    """Return what is trained; every quantiser's losses weigh what configs/objective says."""
    torch.manual_seed(settings.seed)
    config = preset("objective", "reconstruction")
    config["weights"]["kl"] = settings.kl_weight
    return TokenizerTask(
        tokenizer(name).to(memory_format=torch.channels_last),
        objective=build(config, trust=True),
        optim=Optim(lr=settings.lr, weight_decay=0.01, warmup=50),
        steps=settings.steps,
        seed=settings.seed,
    )


@torch.inference_mode()
def numbers(model: Tokenizer, source: ImageSource) -> dict[str, Any]:
    """Return how a trained tokenizer does on held-out images, and how its codes are used.

    Codes are counted over the training images, the ids of a position taken together: 4,096
    possible codes for each of the discrete ones. The rate of a continuous one is its divergence
    from the normal prior, which bits-back coding could reach, on held-out images.
    """
    _, result = heldout_psnr(model, source, torch.device("cpu"))
    if model.spec.kind == "continuous":
        images = torch.stack([source.val[i]["image"] for i in range(len(source.val))])
        nats = [model.quantizer.posterior(model.latents(part)).kl() for part in images.split(64)]
        bits = float(torch.cat(nats).mean()) / math.log(2)
        return result | {"bits_per_image": bits * POSITIONS, "bits_per_code": bits}
    images = torch.stack([source.train[i]["image"] for i in range(len(source.train))])
    ids = torch.cat([model.encode(part) for part in images.split(64)])
    if ids.ndim == 3:
        each = torch.tensor(model.spec.segments[0].vocab_sizes)
        ids = (ids * torch.cat((torch.ones(1), each.cumprod(0)[:-1])).long()).sum(-1)
    return result | {
        "bits_per_image": BITS * POSITIONS,
        "bits_per_code": unigram_entropy_bits(ids, CODES),
        "codes_used": ids.unique().numel() / CODES,
        "codes_counted": ids.numel(),
    }


def train(name: str, settings: Settings, source: ImageSource) -> None:
    """Train one tokenizer and write its JSON."""
    path = Path(settings.out) / f"{name}-seed{settings.seed}.json"
    if path.is_file():
        print(f"{name}: finished, see {path}", flush=True)
        return
    module, directory = task(name, settings), Path(settings.work) / path.stem
    stream = Stream(
        source.train,
        source.val,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    how = FitSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        ema=0.99,
        val_every=settings.steps,
        trainer={"accelerator": "cpu", "precision": "32-true"},
        logger={"kind": "none"},
    )
    fit(module, stream, how, title=name, directory=directory)
    found = numbers(module.tokenizer.eval(), source)
    about = {
        "quantizer": name,
        "seed": settings.seed,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "images": f"emoji, {SIDE}x{SIDE}",
        "config": module.tokenizer.config,
        "kl_weight": settings.kl_weight if name == "kl" else None,
        **provenance(),
    }
    write_json(path, found | about)
    print(f"{name}: {found}", flush=True)


def measure_time(settings: Settings, source: ImageSource) -> None:
    """Write the median seconds of a training step, the quantisers taking turns."""
    images = torch.stack([source.train[i]["image"] for i in range(settings.batch_size)])
    tasks = {name: task(name, settings) for name in settings.only}
    optimizers = {name: one.optim.make_optimizer(one.tokenizer) for name, one in tasks.items()}
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(settings.rounds + 1):
        for name, one in tasks.items():
            start = time.perf_counter()
            for step in range(3):
                apply_step(one.tokenizer, step)
                total, _ = one.objective.tokenizer_loss(images, one.tokenizer(images), step=step)
                optimizers[name].zero_grad()
                total.backward()
                optimizers[name].step()
            if turn:  # the first round warms up
                spent[name].append((time.perf_counter() - start) / 3)
    result = {
        "seconds_per_step": {name: statistics.median(values) for name, values in spent.items()},
        "rounds": settings.rounds,
        "threads": torch.get_num_threads(),
        "batch_size": settings.batch_size,
        **provenance(),
    }
    write_json(Path(settings.out) / "time.json", result)
    print(result["seconds_per_step"], flush=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    given = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli())
    values: Any = OmegaConf.to_container(given)
    settings = Settings(**{**values, "only": tuple(values["only"])})
    unknown = [name for name in settings.only if name not in QUANTIZERS]
    if unknown:
        sys.exit(f"There is no quantiser {unknown[0]!r}; choose from {', '.join(QUANTIZERS)}.")
    source = emoji(image_size=SIDE, shift=2)
    if settings.time:
        measure_time(settings, source)
        return
    for name in settings.only:
        train(name, settings, source)


if __name__ == "__main__":
    main()
