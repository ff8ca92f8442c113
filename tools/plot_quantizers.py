"""Draw benchmarks/quantizers: PSNR over the bits that the codes carry, one point a quantiser.

python tools/plot_quantizers.py [--out docs/images/quantizers.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from argen.runtime.files import replacing

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "quantizers"


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "quantizers.png")
    out = parser.parse_args().out
    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=110)
    for path in sorted(RUNS.glob("*-seed*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        bits, psnr = run["bits_per_code"], run["psnr_heldout_db"]
        axes.plot(bits, psnr, "o", color="tab:orange" if run["quantizer"] == "kl" else "tab:blue")
        axes.annotate(
            run["quantizer"], (bits, psnr), textcoords="offset points", xytext=(5, 3), fontsize=8
        )
    axes.set_xlabel("bits per code that are used (12 possible; kl: its rate)")
    axes.set_ylabel("held-out PSNR, dB")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")


if __name__ == "__main__":
    main()
