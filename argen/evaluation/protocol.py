"""A protocol: everything that must be equal before two scores may be compared, under one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from argen.errors import UserError, suggest
from argen.images.pixels import ROUNDINGS
from argen.runtime.presets import config_dir

# What each metric depends on beyond images and features: part of the hash where it is asked for.
METRICS: dict[str, tuple[str, ...]] = {
    "frechet": (),
    "sfid": (),
    "inception_score": ("is_splits", "is_shuffle"),
    "kid": ("kid_subsets", "kid_subset_size", "reference_features"),
    "precision_recall": ("neighbours", "reference_features"),
    "density_coverage": ("ball_neighbours", "reference_features"),
    "class_agreement": (),
    "near_copies": (),
    "duplicates": (),
    "psnr": (),
    "ssim": (),
    "lpips": (),
    "code_usage": (),
}
PAIRED = ("psnr", "ssim", "lpips", "code_usage")
LABELS = ("even", "any")


@dataclass(frozen=True)
class Protocol:
    """How images are scored.

    Attributes:
        name: of the YAML file.
        title: one line for people.
        key: under which the Fréchet distance stands in `metrics.json`.
        label: what the distance is called when printed.
        samples: how many images make a comparable score.
        least: how many are needed unless the run is declared quick.
        extractor: the feature network.
        size: side in pixels that images are resized to.
        sha256: of the network's weight file; the first digits are enough.
        reference: `train` for the data's training images; `originals` for the held-out images
            that a tokenizer reconstructs; `given` for statistics named on the command line; the
            name of an asset; or the path of stored statistics.
        labels: `even`: every class equally often (counts differ by one at most), or `any`.
        rounding: how floats become 8-bit values: `nearest` or `truncate`.
        metrics: some of `METRICS`.
        near_copy_rmse: below this distance on the [0, 1] pixel scale a sample counts as a copy.
        is_splits: of the inception score.
        is_shuffle: whether it shuffles first, as torch-fidelity does and ADM does not.
        kid_subsets: of KID.
        kid_subset_size: images in each.
        neighbours: k of precision and recall.
        ball_neighbours: k of density and coverage.
        reference_features: most reference images that the last four compare with.
        notes: for people.
    """

    name: str
    title: str
    key: str
    label: str
    samples: int
    least: int
    extractor: str
    size: int
    sha256: str = ""
    reference: str = "train"
    labels: str = "even"
    rounding: str = "nearest"
    metrics: tuple[str, ...] = ("frechet",)
    near_copy_rmse: float = 0.05
    is_splits: int = 10
    is_shuffle: bool = False
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    ball_neighbours: int = 5
    reference_features: int = 10000
    notes: str = ""

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserError(
                    f"Protocol {self.name} asks for the unknown metric {metric!r}; "
                    f"known are {', '.join(METRICS)}.{suggest(metric, METRICS)}"
                )
        if self.labels not in LABELS or self.rounding not in ROUNDINGS:
            raise UserError(
                f"Protocol {self.name}: labels must be one of {', '.join(LABELS)} and rounding "
                f"one of {', '.join(ROUNDINGS)}."
            )
        if not self.paired and (odd := [m for m in self.metrics if m in PAIRED]):
            raise UserError(
                f"Protocol {self.name}: {', '.join(odd)} compare reconstructions with their "
                "originals: set reference: originals."
            )
        if not 2 <= self.least <= self.samples:
            raise UserError(f"Protocol {self.name}: 2 <= least <= samples must hold.")

    @property
    def paired(self) -> bool:
        """Whether it compares reconstructions with their originals."""
        return self.reference == "originals"

    @property
    def keeps_features(self) -> bool:
        """Whether some metric needs the features themselves, not only their moments."""
        return any("reference_features" in METRICS[metric] for metric in self.metrics)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Build a protocol from a mapping, as YAML or a config gives it.

        Raises:
            UserError: unknown, missing or impossible entries.
        """
        known = {field.name: field for field in fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"A protocol has no entry {key!r}.{suggest(str(key), known)}")
        # Only what has no default is required.
        missing = [name for name in list(known)[:8] if name not in values]
        if missing:
            raise UserError(f"The protocol lacks {', '.join(missing)}.")
        plain = dict(values)
        if "metrics" in plain:
            plain["metrics"] = tuple(plain["metrics"])
        return cls(**plain)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Protocol:
        """Read a protocol that ships with argen by name, or any YAML file by path.

        Raises:
            UserError: no such protocol, or a damaged file.
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            shipped = shipped_protocols()
            if str(name_or_path) not in shipped:
                raise UserError(
                    f"There is no protocol {str(name_or_path)!r}; there are "
                    f"{', '.join(shipped)}.{suggest(str(name_or_path), shipped)}"
                )
            path = shipped[str(name_or_path)]
        if not path.is_file():
            raise UserError(f"There is no protocol file {path}.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not readable YAML.") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} is not a protocol: it must hold `key: value` lines.")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "metrics": list(self.metrics)}

    def hash(self) -> str:
        """Return 16 digits that change with anything that changes a score (not with the prose)."""
        used = {name for metric in self.metrics for name in METRICS[metric]}
        unused = {name for names in METRICS.values() for name in names} - used
        values = {k: v for k, v in self.to_dict().items() if k not in {"title", "notes"} | unused}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_count(self, count: int, *, quick: bool) -> None:
        """Raise `UserError` unless `count` samples are enough, or the run is a quick one."""
        if count < 2:
            raise UserError(f"{self.label} needs at least 2 samples, not {count}.")
        if count < self.least and not quick:
            raise UserError(
                f"{self.label} of {count} samples says little: protocol {self.name} needs at "
                f"least {self.least}. Make more, or say quick=true for a rough number."
            )

    def score_name(self, count: int, *, comparable: bool, quick: bool) -> str:
        """Return what the score is called: `FID`, `FID-5k (quick)`, `fd_lite (not comparable)`."""
        if quick:
            return f"{self.label}-{count / 1000:g}k (quick)"
        return self.label if comparable else f"{self.label}-{count / 1000:g}k (not comparable)"


def shipped_protocols() -> dict[str, Path]:
    """Return the protocol files that come with argen, by name."""
    return {path.stem: path for path in sorted((config_dir() / "protocol").glob("*.yaml"))}


def evenly_spread(labels: Tensor, classes: int) -> bool:
    """Return whether each of `classes` classes occurs equally often, up to one."""
    counts = labels.long().bincount(minlength=classes)
    return bool(len(counts) == classes and int(counts.max()) - int(counts.min()) <= 1)
