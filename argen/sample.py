"""Sample images with a trained model: `python -m argen.sample --help`."""

from __future__ import annotations

from typing import Any

from argen.runtime.command import plain, run, show


def main(config: Any) -> None:
    """Sample, then write images and a grid."""
    from argen.recipes.sample import SamplingRequest, sample_images

    for line in sample_images(SamplingRequest.from_settings(plain(config))):
        show(line)


if __name__ == "__main__":
    run(main, "sample")
