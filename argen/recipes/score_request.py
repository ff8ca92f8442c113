"""What `argen evaluate` is told, checked as far as settings alone allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from argen.errors import UserError
from argen.evaluation.protocol import Protocol
from argen.evaluation.sweep import Sweep
from argen.layers.inference_precision import check_precision
from argen.pipeline.settings import given_settings
from argen.runtime.command import require_positive

Subject = Literal["model", "reconstruction", "samples", "codes", "reference"]


@dataclass(frozen=True)
class ScoreRequest:
    """What is scored, by which protocol, and where the result goes.

    Attributes:
        subject: what is looked at: a model's images, its reconstructions, samples of anyone, codes,
            or nothing but a reference that is to be kept.
        where: the model's directory, the samples or the codes; None for a reference alone.
        protocol: what to measure and how.
        data: how to build the data set that is compared with; None for the model's own.
        reference: images or statistics to compare with instead of the protocol's.
        save: file of the reference that is to be kept.
        out: the JSON file, or the directory of a sweep; None for its usual place.
        n: images to sample, or codes to look at; None for the protocol's number.
        quick: allow fewer images than the protocol needs.
        seed: of the samples.
        sampling: settings by name, see `argen.pipeline.settings`.
        decoder: how to build the strategy; the plainest that fits the model when None.
        sweep: sampling settings that are tried one after another; None for one score.
        split: which images are reconstructed.
        export: also write the samples for ADM's script.
        keep_samples: do not delete the samples afterwards.
        batch_size: images at once.
        precision: of the weights that sample and decode.
        features_path: weights of the feature network, where no package brings them.
        lpips_path: weights of LPIPS, likewise.
        text_encoder: how to build the model's, where it does not say.
        device: as in the configuration.
        trust: build classes from outside argen that the model names.
    """

    subject: Subject
    where: str | None
    protocol: Protocol
    data: Mapping[str, Any] | None
    reference: str | None
    save: Path | None
    out: Path | None
    n: int | None
    quick: bool
    seed: int
    sampling: Mapping[str, Any]
    decoder: Mapping[str, Any] | None
    sweep: Sweep | None
    split: str
    export: bool
    keep_samples: bool
    batch_size: int
    precision: str
    features_path: str | None
    lpips_path: str | None
    text_encoder: Mapping[str, Any] | None
    device: str
    trust: bool

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ScoreRequest:
        """Return what the command's settings ask for.

        Raises:
            UserError: nothing to score, two things at once, or values that are not known.
        """
        require_positive(settings, "batch_size")
        check_precision(settings["precision"])
        subject = _subject(settings)
        sweep = Sweep.from_settings(settings["sweep"])
        if sweep is not None and subject != "model":
            raise UserError("A sweep is over the sampling settings of a model: give model=DIR.")
        if subject == "reconstruction" and settings["precision"] == "int8":
            raise UserError("precision=int8 is of generators: use float32 or bfloat16 here.")
        save = None if settings["save"] is None else Path(settings["save"])
        if save is not None and save.suffix != ".npz":
            raise UserError(f"save={save}: a reference is an .npz file, give it that ending.")
        key = {"reconstruction": "model", "codes": "tokens"}.get(subject, subject)
        return cls(
            subject=subject,
            where=None if subject == "reference" else str(settings[key]),
            protocol=Protocol.from_dict(settings["protocol"]),
            data=settings.get("data"),
            reference=settings["reference"],
            save=save,
            out=Path(settings["out"]) if settings["out"] else None,
            n=settings["n"],
            quick=settings["quick"],
            seed=settings["seed"],
            sampling=given_settings(settings),
            decoder=settings.get("decoder") or None,
            sweep=sweep,
            split=settings["split"],
            export=bool(settings["export"]),
            keep_samples=bool(settings["keep_samples"]),
            batch_size=settings["batch_size"],
            precision=settings["precision"],
            features_path=settings["features_path"],
            lpips_path=settings["lpips_path"],
            text_encoder=settings.get("text_encoder"),
            device=settings["device"],
            trust=settings["trust"],
        )

    @property
    def count(self) -> int:
        """How many images a model samples.

        Raises:
            UserError: fewer than the protocol needs.
        """
        count = self.n or self.protocol.samples
        self.protocol.check_count(count, quick=self.quick)
        return count

    @property
    def result_file(self) -> Path:
        """Where the numbers go."""
        beside = {"samples": Path("metrics.json"), "codes": Path("tokens.json")}
        usual = Path(self.where or ".") / f"metrics-{self.protocol.name}.json"
        return self.out or beside.get(self.subject, usual)

    def at(self, point: Mapping[str, Any], out: Path) -> ScoreRequest:
        """Return the request of one point of a sweep."""
        return replace(self, sampling={**self.sampling, **point}, out=out, sweep=None)


def _subject(settings: Mapping[str, Any]) -> Subject:
    """Return what the settings say is to be scored."""
    named: dict[str, Subject] = {"model": "model", "samples": "samples", "tokens": "codes"}
    given = [subject for name, subject in named.items() if settings.get(name) is not None]
    only_reference = settings["save"] is not None
    if only_reference and settings["reference"] is None:
        raise UserError("save=FILE keeps a reference: say of which images, reference=IMAGES.")
    if len(given) != 1 and not (only_reference and not given):
        raise UserError(
            "Give model=DIR to score a model, samples=IMAGES to score images somebody made, or "
            "tokens=CODES to look at codes."
        )
    if only_reference:
        return "reference"
    if given == ["model"] and settings["reconstruction"]:
        return "reconstruction"
    return given[0]
