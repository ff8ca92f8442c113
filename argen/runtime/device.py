"""Where to compute, and in what precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from argen.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` (or `gpu`) or `mps`.

    Raises:
        UserError: if a device is asked for that is not there.
    """
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    if name in ("cuda", "gpu"):
        if not cuda:
            raise UserError(
                "A CUDA device was asked for, but torch sees none here. Use trainer=auto (or "
                "device=auto), or install a CUDA build of torch and a driver."
            )
        return torch.device("cuda")
    if name == "mps" and not mps:
        raise UserError("An Apple GPU was asked for, but torch sees none here; use device=auto.")
    if name not in ("cpu", "mps"):
        raise UserError(f"Unknown device {name!r}; use auto, cpu, cuda or mps.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """Return Lightning's precision; `auto` is bf16-mixed where the hardware has it, or 32-true."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "bf16-mixed"
    return "32-true"


def pick_dtype(name: str) -> torch.dtype:
    """Return the type of weights: `float32` or `bfloat16`.

    Raises:
        UserError: for any other name.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise UserError(f"Unknown precision={name}; use {' or '.join(dtypes)}.")
    return dtypes[name]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Keep TF32 out of convolutions, so that an image does not depend on its batch."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
