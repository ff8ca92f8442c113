"""FSDP2: weights, gradients, optimiser states and averages sharded over the ranks (2304.11277).

Lightning's `ModelParallelStrategy` starts the ranks and reads and writes checkpoints, which stay
one file with whole tensors; here is what is particular to generators.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from argen.layers.gradient_checkpointing import checkpointable_blocks
from argen.training.code_tasks import GeneratorTask
from argen.training.ema import warmed_up

AVERAGED = "averaged_weights"


def sharded_strategy(devices: Any, nodes: int) -> ModelParallelStrategy:
    """Return the strategy of `trainer=fsdp2`: every rank holds a shard of everything."""
    if devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count())
    count = len(devices) if isinstance(devices, list | tuple) else int(devices)
    return ModelParallelStrategy(
        data_parallel_size=count * nodes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


class ShardedGeneratorTask(GeneratorTask):
    """Trains a generator of which each rank holds a part."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compiled, self._sharded = False, False

    def compile_network(self) -> None:
        """Compile the blocks, between which weights are gathered."""
        self._compiled = True

    def configure_model(self) -> None:
        """Shard the generator: each block by itself, then all the rest."""
        if self._sharded:
            return
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for block in list(checkpointable_blocks(self.generator)):
            if self._compiled:
                block.compile()
            fully_shard(block, mesh=mesh)
        # Sharded again after each pass: averages are put in their place between passes.
        fully_shard(self.generator, mesh=mesh, reshard_after_forward=True)
        self._sharded = True


class ShardedEMA(Callback):
    """Averages shards of weights; validation and export use them, buffers are left alone.

    Args:
        decay: share of the old average kept by one step, after a warm-up.
    """

    def __init__(self, decay: float) -> None:
        self.update = warmed_up(decay)
        self.count, self._step = 0, 0
        self._shards: list[Tensor] = []
        self._loaded: dict[str, Tensor] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the averages of a checkpoint until the weights are sharded."""
        found = checkpoint.get(AVERAGED)
        if found is not None:
            self._loaded, self.count = found["weights"], int(found["count"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights, or with the averages that were loaded."""
        self._step = trainer.global_step
        named = list(pl_module.named_parameters())
        self._shards = [local(p).clone() for _, p in named]
        if self._loaded is None:
            return
        for shard, (name, parameter) in zip(self._shards, named):
            value = self._loaded[name].to(shard.device)
            if isinstance(parameter, DTensor):
                cut = distribute_tensor(value, parameter.device_mesh, parameter.placements)
                value = cut.to_local()
            shard.copy_(value)
        self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after every step."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.update(self._shards, [local(p) for p in pl_module.parameters()], self.count)
            self.count += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in the place of the weights."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the averages, whole; every rank has to be here."""
        whole = {}
        for shard, (name, parameter) in zip(self._shards, pl_module.named_parameters()):
            value = shard
            if isinstance(parameter, DTensor):
                value = DTensor.from_local(
                    shard, parameter.device_mesh, parameter.placements,
                    shape=parameter.shape, stride=parameter.stride(),
                ).full_tensor()  # fmt: skip
            whole[name] = value.cpu()
        checkpoint[AVERAGED] = {"weights": whole, "count": self.count}

    @torch.no_grad()
    def copy_to(self, module: LightningModule) -> None:
        """Put the averages into the module for good."""
        for shard, parameter in zip(self._shards, module.parameters()):
            local(parameter).copy_(shard)

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        for shard, parameter in zip(self._shards, module.parameters()):
            weight = local(parameter)
            kept = weight.clone()
            weight.copy_(shard)
            shard.copy_(kept)


def local(parameter: Tensor) -> Tensor:
    """Return this rank's part of a weight, sharing its memory."""
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value


@torch.no_grad()
def gathered(network: nn.Module) -> dict[str, Tensor]:
    """Return the whole weights and buffers, on every rank; every rank has to be here."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in network.state_dict().items()
    }
