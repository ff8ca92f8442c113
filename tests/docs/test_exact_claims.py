"""What the README calls exact has a recorded run in the repository; recordings stay small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.skipif(
    (ROOT / "PKG-INFO").is_file(), reason="a source distribution has no recordings"
)

# The recorded runs of each name in the README's table, longest names first where one holds another.
RECORDED = {
    "LlamaGen tokenizer": {"llamagen-vq", "llamagen-vq-loss"},
    "GPT, class and text": {"llamagen-c2i", "llamagen-t2i"},
    "grouped-query attention": {"llamagen-c2i-gqa"},
    "taming VQGAN": {"taming-vqgan"},
    "Gumbel VQGAN": {"taming-gumbel"},
    "Net2Net": {"taming-net2net"},
    "MaskGIT-VQGAN": {"maskgit-vqgan"},
    "MaskGIT (BERT, U-ViT)": {"maskgit-bert", "maskgit-uvit", "maskgit-step"},
    "Open-MAGVIT2": {"open-magvit2-lfq", "open-magvit2-lfq-ema", "open-magvit2-ar"},
    "IBQ": {"ibq", "ibq-ar"},
    "WeTok": {"wetok", "wetok-gan", "wetok-ar"},
    "VAR multi-scale tokenizer": {"var-vqvae", "var-vqvae-znorm"},
    "TA-TiTok": {"ta-titok"},
    "TiTok": {"titok-vq", "titok-vq-stage1", "titok-vq-single-stage", "titok-vae"},
    "One-D-Piece": {"one-d-piece"},
    "MAR KL-16": {"mar-klvae"},
    "Binary autoencoder of Binary Latent Diffusion": {"binary-ae"},
    "xAR": {"xar"},
    "MAR": {"mar"},
    "NAR": {"nar-c2i"},
    "RAR": {"rar"},
    "generator": {"var"},  # VAR's: the one generator in the row of its tokenizer
    "speculative": {"speculative-toy"},
    "Jacobi (SJD": {"sjd", "sjd-accept", "jacobi-toy"},
    "grouped (GSD)": {"gsd", "gsd-accept"},
    "relaxed (LANTERN)": {"lantern-accept", "lantern-accept-static", "lantern-drafter"},
}
# Words of the table that name no system. Successors of SJD are proven exact, not recorded.
JOINING = ("and exact successors)", "tokenizers and generators", "decoding", "and")


def exact_rows() -> list[str]:
    """Return the first cell of every row of the README that says exact without restriction."""
    rows = [line.strip("|").split("|") for line in README.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row[0] for row in cells if len(row) == 3 and re.match(r"exact(;|$)", row[2])]


def names_in(row: str) -> tuple[set[str], str]:
    """Return the known names in a row, and what is left of it without them."""
    found = set()
    for name in RECORDED:
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", row):
            found.add(name)
            row = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", row)
    for word in JOINING:
        row = row.replace(word, "")
    return found, row.strip(" ,:")


def test_the_table_is_there() -> None:
    assert len(exact_rows()) >= 12


@pytest.mark.parametrize("row", exact_rows())
def test_every_system_called_exact_has_its_recorded_runs(row: str) -> None:
    names, rest = names_in(row)
    assert not rest, f"no recorded run is known for {rest!r}: add it to RECORDED and tests/golden"
    missing = [run for name in names for run in RECORDED[name] if not is_whole(run)]
    assert names
    assert not missing


def is_whole(run: str) -> bool:
    files = ("card.json", "weights.safetensors", "io.safetensors")
    return all((GOLDEN / run / file).is_file() for file in files)


def test_nothing_is_claimed_that_the_table_lacks() -> None:
    named = set().union(*(names_in(row)[0] for row in exact_rows()))
    assert named == set(RECORDED)


def test_recordings_stay_small() -> None:
    sizes: dict[str, int] = {}
    for file in GOLDEN.rglob("*.*"):
        run = file.relative_to(GOLDEN).parts[0]
        sizes[run] = sizes.get(run, 0) + file.stat().st_size
    assert sum(sizes.values()) < 150e6
    assert {run: size for run, size in sizes.items() if size > 2.5e6} == {}
