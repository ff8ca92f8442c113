"""Images to codes and back with a trained tokenizer: `python -m argen.reconstruct --help`."""

from __future__ import annotations

from typing import Any

from argen.runtime.command import plain, run, show


def main(config: Any) -> None:
    """Encode and decode images, or decode codes that were kept."""
    from argen.recipes.reconstruct import ReconstructionRequest, reconstruct

    for line in reconstruct(ReconstructionRequest.from_settings(plain(config))):
        show(line)


if __name__ == "__main__":
    run(main, "reconstruct")
