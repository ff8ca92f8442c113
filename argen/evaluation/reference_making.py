"""References from where images lie: a data set, a folder, shards, or a file of statistics.

Shapes: K classes, D feature width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from argen.data.images import ImageDataset, ImageSource
from argen.errors import UserError
from argen.evaluation.collected import Collected
from argen.evaluation.protocol import Protocol
from argen.evaluation.reconstructed import Images, originals
from argen.evaluation.reference import Reference
from argen.evaluation.sample_files import array_names, open_samples
from argen.images.pixels import to_uint8
from argen.pretrained.assets import asset, assets
from argen.pretrained.base import FeatureExtractor
from argen.pretrained.features import build_extractor

log = logging.getLogger(__name__)


def require_reference(protocol: Protocol, source: ImageSource | None) -> None:
    """Raise `UserError` if a protocol's own reference cannot be had; looks at no image."""
    if protocol.reference == "given":
        raise UserError(
            f"Protocol {protocol.name} compares with images of your own: give them, or "
            "statistics made of them, as reference=PATH."
        )
    if protocol.reference in assets():
        asset(protocol.reference).find()
    elif protocol.reference in ("train", "originals") and source is None:
        raise UserError(
            f"Protocol {protocol.name} compares with the images of a data set: say which "
            "(data=NAME), or give stored statistics (reference=FILE.npz)."
        )


def protocol_reference(
    protocol: Protocol,
    extractor: FeatureExtractor,
    *,
    source: ImageSource | None = None,
    images: Images | None = None,
    batch_size: int = 32,
) -> Reference:
    """Return the reference that a protocol names.

    Args:
        protocol: says which.
        extractor: its feature network.
        source: the data, where the reference is made of it.
        images: the originals of reconstructions; `source.val` when not given.
        batch_size: images that go through the network at once.

    Raises:
        UserError: it cannot be had; the message says what is missing.
    """
    require_reference(protocol, source)
    if protocol.reference not in ("train", "originals"):
        return open_reference(
            protocol.reference, protocol, extractor=extractor, batch_size=batch_size
        )
    assert source is not None
    if protocol.reference == "train":
        return reference_from_source(source, extractor, batch_size=batch_size, **kept_for(protocol))
    shown = source.val if images is None else images
    return reference_from_batches(
        originals(shown, batch_size),
        extractor,
        name=f"{source.name}, {len(shown)} originals",
        **kept_for(protocol),
    )


def kept_for(protocol: Protocol) -> dict[str, Any]:
    """Return what a reference must hold beyond moments, as options of `reference_from_batches`."""
    keep = protocol.reference_features if protocol.keeps_features else 0
    return {"spatial": "sfid" in protocol.metrics, "keep": keep}


def open_reference(
    where: Path | str,
    protocol: Protocol,
    *,
    extractor: FeatureExtractor | None = None,
    weights_path: Path | str | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
) -> Reference:
    """Return the reference at a path: stored statistics, or images, whose features are taken.

    Args:
        where: an .npz of statistics, or a folder, .npz or tar shards of images, or an asset.
        protocol: says what the reference must hold.
        extractor: the feature network, else the protocol's is built.
        weights_path: its weights, where they do not come with a package.
        device: where it runs.
        batch_size: images that go through the network at once.

    Raises:
        UserError: nothing there, or something else.
    """
    path = asset(str(where)).find() if str(where) in assets() else Path(where)
    stored = path.suffix == ".npz" and bool({"mu", "mean"} & set(array_names(path)))
    samples = None if stored else open_samples(where)
    extractor = extractor or build_extractor(
        protocol.extractor, size=protocol.size, weights_path=weights_path, device=device
    )
    wanted = kept_for(protocol)
    if samples is not None:
        batches = (images for _, images in samples.batches(batch_size, share=False))
        return reference_from_batches(
            batches, extractor, name=samples.name, labels=samples.labels, **wanted
        )
    reference = Reference.load(path)
    if wanted["keep"] and not len(reference.features_MD) and "arr_0" in array_names(path):
        shown = open_samples(path)
        log.info("taking the features of %d images of %s", shown.count, path.name)
        batches = (images for _, images in shown.batches(batch_size, share=False))
        reference.add_features(batches, extractor, max_images=wanted["keep"])
    return reference


def train_name(source: ImageSource) -> str:
    """Return what a reference made of a data set's training images is called."""
    return f"{source.name} train {source.image_size[0]}x{source.image_size[1]}"


def reference_from_source(
    source: ImageSource, extractor: FeatureExtractor, *, batch_size: int = 32, **options: Any
) -> Reference:
    """Return the reference of a data set's training images, as they are, not augmented.

    Options are those of `reference_from_batches`.
    """
    return reference_from_batches(
        dataset_batches(source.train, batch_size=batch_size),
        extractor,
        name=train_name(source),
        labels=source.train.labels,
        **options,
    )


def reference_from_batches(
    batches: Iterable[Tensor],
    extractor: FeatureExtractor,
    *,
    name: str,
    labels: Tensor | None = None,
    spatial: bool = False,
    keep: int = 0,
) -> Reference:
    """Return the reference of any images.

    Args:
        batches: (B, 3, H, W), floats in [-1, 1] or uint8.
        extractor: the feature network.
        name: for records and messages.
        labels: (N,) of all images in order; without them there are no class centroids.
        spatial: also take what sFID needs.
        keep: features of at most so many images, for KID, precision and recall.

    Raises:
        UserError: fewer than two images, or as many labels as there are not images.
    """
    kept = ("pool",) if keep else ()
    collected = Collected(extractor, keep=kept, spatial=spatial, max_images=keep or None)
    statistics = collected.statistics
    classes = 0 if labels is None or len(labels) == 0 else int(labels.max()) + 1
    sums_KD = torch.zeros(classes, extractor.dim, dtype=torch.float64)
    digest, size = hashlib.sha256(), (0, 0)
    for batch in batches:
        pixels = to_uint8(batch)
        if size == (0, 0):
            size = (pixels.shape[2], pixels.shape[3])
            digest.update(str(size).encode())
        digest.update(pixels.cpu().contiguous().numpy().tobytes())
        features = extractor(pixels)
        done = statistics.count
        if labels is not None:
            own = labels[done : done + len(pixels)].cpu().long()
            if len(own) != len(pixels):
                raise UserError(f"{name} has {len(labels)} labels, but more images.")
            sums_KD.index_add_(0, own, features["pool"].cpu().double())
        collected.update(features, torch.arange(done, done + len(pixels)))
    if statistics.count < 2:
        raise UserError(f"{name} has {statistics.count} images; a reference needs at least 2.")
    counts_K = torch.bincount(
        torch.zeros(0, dtype=torch.long) if labels is None else labels.cpu().long(),
        minlength=classes,
    )
    present = counts_K.nonzero()[:, 0]
    return Reference(
        name=name,
        statistics=statistics,
        extractor=extractor.protocol(),
        count=statistics.count,
        sha256=digest.hexdigest(),
        image_size=size,
        classes_K=present,
        centroids_KD=sums_KD[present] / counts_K[present, None],
        spatial=collected.spatial,
        features_MD=collected.features("pool", all_ranks=False) if keep else torch.zeros(0, 0),
    )


def dataset_batches(dataset: ImageDataset, *, batch_size: int = 32) -> Iterator[Tensor]:
    """Yield a data set's images in order, bare, as floats (B, 3, H, W) in [-1, 1]."""
    for start in range(0, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        yield torch.stack([dataset[i]["image"] for i in range(start, stop)])
