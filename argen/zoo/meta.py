"""What is published of a preset, under `_meta_` in its YAML: paper, sizes, licences, scores.

A preset whose own file has no `_meta_` reproduces nothing published: it is argen's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from argen.build import META
from argen.errors import UserError, suggest
from argen.runtime.presets import config_dir, preset_names
from argen.zoo import checks

GROUPS = ("tokenizer", "generator")


@dataclass(frozen=True)
class Weights:
    """One released file.

    Attributes:
        what: what it holds; that of a generator's tokenizer begins with "tokenizer".
        file: its name, with folders where its repository has some; None where not known.
        hub: its repository on the Hugging Face hub.
        url: where it lies: the file, the archive that holds it, or the page that links to it.
        sha256: 64 hexadecimal digits, where published.
    """

    what: str
    file: str | None = None
    hub: str | None = None
    url: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, entry: Any, *, where: str) -> Weights:
        """Read one entry of `weights`; see `Meta.of`."""
        entry = checks.mapping_of(entry, where)
        checks.known_keys(entry, [f.name for f in fields(cls)], where)
        for key in entry:
            checks.text(entry, key, where)
        if not entry.get("what"):
            raise UserError(f"{where}.what is missing: say what the file holds.")
        if entry.get("url"):
            checks.https(entry["url"], f"{where}.url")
        if entry.get("sha256") and not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
            raise UserError(
                f"{where}.sha256={entry['sha256']} is not 64 hexadecimal digits; copy what "
                "sha256sum prints, or leave it null."
            )
        if entry.get("hub") and not re.fullmatch(r"[\w.-]+/[\w.-]+", entry["hub"]):
            raise UserError(f"{where}.hub={entry['hub']} is not OWNER/NAME of a hub repository.")
        return cls(**entry)

    @property
    def link(self) -> str | None:
        """Where to get it, as far as known."""
        return self.url or (f"https://huggingface.co/{self.hub}" if self.hub else None)


@dataclass(frozen=True)
class Meta:
    """What is published of one preset.

    Attributes:
        family: the published system that it belongs to, one for tokenizers and generators.
        source: repository of the code.
        licence_code: of that code.
        licence_weights: of the released weights, or that there are none.
        expected: published scores, each with the image size and settings it was got under.
        paper: its title.
        arxiv: its number.
        parameters: as the paper rounds it; the exact count of the network as built here where it
            gives none.
        origin: repository of an earlier form of the same system.
        weights: released files.
        convert: arguments of `argen.convert` besides the files; `tokenizer_ckpt: null` says that a
            generator's file carries its tokenizer along.
        tokenizer: of a generator, the tokenizer preset whose codes it models.
        tokenizer_changes: to that preset, nested as it is.
        optim: preset of the optimiser that it was trained with.
        objective: preset of a tokenizer's objective.
        data: what it was trained on.
        image_size: side in pixels of what the best score was got on.
        sampling: settings of the best score, under the names of `argen.sample`; under `decoder`
            the strategy's `name` and options, where it is not the plainest that fits.
        note: what differs from the published system.
    """

    family: str
    source: str
    licence_code: str
    licence_weights: str
    expected: tuple[Mapping[str, Any], ...]
    paper: str | None = None
    arxiv: str | None = None
    parameters: int | None = None
    origin: str | None = None
    weights: tuple[Weights, ...] = ()
    convert: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    tokenizer_changes: Mapping[str, Any] = field(default_factory=dict)
    optim: str | None = None
    objective: str | None = None
    data: str | None = None
    image_size: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None

    @classmethod
    def of(cls, mapping: Any, *, where: str) -> Meta:
        """Check what a preset says of itself.

        Args:
            mapping: the value of `_meta_`.
            where: the file, for messages.

        Raises:
            UserError: naming the file, the key and what would be right.
        """
        meta = {k: v for k, v in checks.mapping_of(mapping, where).items() if v is not None}
        checks.known_keys(meta, [f.name for f in fields(cls)], where)
        required = ("family", "source", "licence_code", "licence_weights", "expected")
        for key in required:
            if key not in meta:
                raise UserError(f"{where}: {key} is missing; `_meta_` needs {', '.join(required)}.")
        texts = ("family", "source", "licence_code", "licence_weights", "paper", "arxiv", "origin")
        for key in (*texts, "tokenizer", "optim", "objective", "data", "note"):
            checks.text(meta, key, where)
        for key in ("source", "origin"):
            if key in meta:
                checks.https(meta[key], f"{where}: {key}")
        if "arxiv" in meta and not re.fullmatch(r"\d{4}\.\d{4,5}", meta["arxiv"]):
            raise UserError(f'{where}: arxiv={meta["arxiv"]} is not a number like "2404.02905".')
        for key in ("parameters", "image_size"):
            checks.positive(meta, key, where)
        for key in ("tokenizer", "optim", "objective"):
            if key in meta and meta[key] not in (names := preset_names(key)):
                close = suggest(meta[key], names)
                raise UserError(f"{where}: there is no {key} preset {meta[key]!r}.{close}")
        meta["weights"] = tuple(
            Weights.of(entry, where=f"{where}: weights[{i}]")
            for i, entry in enumerate(checks.list_of(meta, "weights", where))
        )
        meta["expected"] = tuple(
            checks.score(entry, f"{where}: expected[{i}]")
            for i, entry in enumerate(checks.list_of(meta, "expected", where))
        )
        for key in ("convert", "tokenizer_changes", "sampling"):
            meta[key] = checks.mapping_of(meta.get(key, {}), f"{where}: {key}")
        checks.known_keys(meta["convert"], checks.CONVERT, f"{where}: convert")
        checks.sampling(meta["sampling"], f"{where}: sampling")
        return cls(**meta)

    @property
    def settings(self) -> dict[str, Any]:
        """Guidance and filters of the best score, as `Pipeline.defaults` keeps them."""
        return {k: v for k, v in self.sampling.items() if k != "decoder"}

    @property
    def decoder(self) -> dict[str, Any]:
        """The strategy's `name` and options; empty for the plainest that fits."""
        return dict(self.sampling.get("decoder", {}))


def published(group: str) -> list[tuple[str, Meta]]:
    """Return (preset, what is published of it), family by family.

    Families come in the order of their first paper, presets of a family by size and name.
    """
    found = [(name, meta) for name in preset_names(group) if (meta := card(group, name))]
    first: dict[str, str] = {}
    for _, meta in found:
        number = meta.arxiv or "9999"
        first[meta.family] = min(number, first.get(meta.family, number))

    def order(item: tuple[str, Meta]) -> tuple[Any, ...]:
        name, meta = item
        return first[meta.family], meta.family, meta.parameters or 0, name

    return sorted(found, key=order)


def card(group: str, name: str) -> Meta | None:
    """Return what is published of a preset, None where it is argen's own.

    Raises:
        UserError: naming close matches, if there is no such preset.
    """
    path = config_dir() / group / f"{name}.yaml"
    if not path.is_file():
        close = suggest(name, preset_names(group))
        raise UserError(f"There is no {group} preset {name!r}.{close}")
    found = checks.read_yaml(path)
    if META not in found:
        return None
    return Meta.of(found[META], where=f"{group}/{name}.yaml: {META}")


def find(name: str) -> tuple[str, Meta]:
    """Return the group and what is published of a preset of any group.

    Raises:
        UserError: naming close matches, if nothing published has that name.
    """
    for group in GROUPS:
        if name in preset_names(group) and (meta := card(group, name)):
            return group, meta
    names = [other for group in GROUPS for other, _ in published(group)]
    raise UserError(f"There is no published model {name!r}.{suggest(name, names)}")


def experiment(name: str) -> str | None:
    """Return the experiment that trains a preset as its paper did, where there is one."""
    top = config_dir() / "experiment"
    paths = sorted(top.glob(f"imagenet*/{name}.yaml"))
    return paths[0].relative_to(top).with_suffix("").as_posix() if paths else None
