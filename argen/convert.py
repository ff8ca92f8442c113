"""Turn a released checkpoint into a model directory: `python -m argen.convert --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argen.errors import UserError, suggest
from argen.runtime.command import require_writable, run, show


def main(config: Any) -> None:
    """Import, check, save."""
    from contextlib import suppress

    from argen.errors import CheckpointError
    from argen.interop.find import find_importer
    from argen.pipeline import Pipeline
    from argen.runtime.command import plain
    from argen.zoo.matching import matching

    settings = plain(config)
    importer = find_importer(settings["source"])
    if hasattr(importer, "import_drafter"):
        _convert_drafter(importer, settings)
        return
    parts: dict[str, Any] = {}
    settings["copies"] = {}  # which of several copies of the weights was taken, by part
    for key in ("tokenizer_ckpt", "ckpt"):
        if settings[key] is not None:
            parts |= _import(importer, settings, key, tokenizer=parts.get("tokenizer"))
    if "tokenizer" not in parts and settings["ckpt"] is not None:
        # Many a generator's file carries its tokenizer along.
        with suppress(CheckpointError):
            parts |= _import(
                importer, {**settings, "tokenizer_ckpt": settings["ckpt"]}, "tokenizer_ckpt"
            )
    if "tokenizer" not in parts:
        raise UserError(
            "A generator needs its tokenizer: add tokenizer_ckpt=FILE, or give a tokenizer as ckpt."
        )
    names: list[str] = []
    if settings["class_names"]:
        path = Path(settings["class_names"])
        if not path.is_file():
            raise UserError(f"class_names={path} does not exist.")
        names = path.read_text().splitlines()
    known = matching(parts["generator"], parts["tokenizer"]) if "generator" in parts else None
    pipe = Pipeline(
        tokenizer=parts["tokenizer"],
        generator=parts.get("generator"),
        class_names=tuple(names),
        defaults=known[1].settings if known else {},
        provenance={
            "weights": "as released",
            "source": settings["source"],
            "files": [Path(settings[k]).name for k in ("tokenizer_ckpt", "ckpt") if settings[k]],
            **({"preset": " or ".join(known[0])} if known else {}),
            **({"copies": settings["copies"]} if settings["copies"] else {}),
        },
    )
    out = require_writable(settings["out"])
    pipe.save(out)
    for name, part in parts.items():
        count = sum(p.numel() for p in part.parameters())
        show(f"{name}: {type(part).__name__}, {count / 1e6:.1f}M parameters")
    show(f"written to {out}: {pipe.tokenizer.spec.describe()}")
    if "generator" in parts:
        _tell_sampling(known, out)


def _tell_sampling(known: tuple[list[str], Any] | None, out: Path) -> None:
    """Say how the model will be sampled when nobody says otherwise."""
    from argen.zoo.card import words_of

    if known is None:
        show("no published preset is built like this: give cfg=, top_k=, ... when you sample")
        return
    names, meta = known
    kept = " ".join(words_of(meta.settings))
    how = f"sampled with {kept}" if kept else "no sampling settings are published"
    show(f"built as {' or '.join(names)}: {how}")
    if meta.decoder:
        strategy = " ".join(words_of({"decoder": meta.decoder}))
        show(f"published with a strategy too: python -m argen.sample model={out} {strategy}")


def _convert_drafter(importer: Any, settings: dict[str, Any]) -> None:
    """Write a drafter directory, which needs no tokenizer."""
    from argen.generators.drafter.feature_drafter import save_drafter

    if settings["ckpt"] is None:
        raise UserError(f"source={settings['source']} has drafters: add ckpt=FILE.")
    for key in ("tokenizer_ckpt", "class_names"):
        if settings[key] is not None:
            raise UserError(f"A drafter has none of its own: leave {key} out.")
    drafter = _import(importer, settings, "ckpt")["drafter"]
    out = require_writable(settings["out"])
    file = Path(settings["ckpt"]).name
    about = {"weights": "as released", "source": settings["source"], "files": [file]}
    save_drafter(drafter, out, about=about)
    count = sum(p.numel() for p in drafter.parameters())
    show(f"drafter: {type(drafter).__name__}, {count / 1e6:.1f}M parameters")
    show(f"written to {out}: {drafter.spec.describe()}")
    show(f"next: python -m argen.sample model=... decoder=relaxed decoder.drafter={out}")


def _import(
    importer: Any, settings: dict[str, Any], key: str, *, tokenizer: Any = None
) -> dict[str, Any]:
    """Import one file as whichever part it is; a generator's grid and spec follow its tokenizer."""
    from argen.errors import CheckpointError
    from argen.runtime.checkpoint import read_weights

    path = settings[key]
    checkpoint = read_weights(path, trust=settings["trust"])
    # A generator's file may hold a tokenizer too, but never the other way round.
    kinds = ["tokenizer"] if key == "tokenizer_ckpt" else ["generator", "tokenizer", "drafter"]
    refusals = []
    for kind in kinds:
        function = getattr(importer, f"import_{kind}", None)
        if function is None:
            continue
        known: dict[str, Any] = {"image_size": settings["image_size"]}
        if kind == "generator" and tokenizer is not None:
            known |= {"factor": tokenizer.factor, "embed_dim": tokenizer.spec.dim}
        extra = settings["tokenizer_options" if kind == "tokenizer" else "options"]
        options = _options(function, known, extra, source=settings["source"])
        try:
            imported = function(checkpoint, source=Path(path).name, **options)
            built = imported.build()
            if imported.copy:
                settings.setdefault("copies", {})[kind] = imported.copy
                show(f"{kind}: {Path(path).name} holds several copies; {imported.copy} is taken")
            return {kind: built}
        except CheckpointError as error:
            refusals.append(str(error))
    raise CheckpointError(" ".join(refusals) or f"{settings['source']} imports no {kinds[0]}.")


def _options(
    function: Any, known: dict[str, Any], extra: dict[str, Any], *, source: str
) -> dict[str, Any]:
    """Return what an importer is called with: of `known` what it takes, and all of `extra`.

    Raises:
        UserError: if it does not take something in `extra`.
    """
    from inspect import signature

    takes = [name for name in signature(function).parameters if name != "checkpoint"]
    takes.remove("source")
    for name in extra:
        if name not in takes:
            kind = function.__name__.removeprefix("import_")
            raise UserError(
                f"source={source} takes no option {name!r} for a {kind}.{suggest(name, takes)} "
                f"It takes: {', '.join(takes)}."
            )
    return {k: v for k, v in known.items() if k in takes} | extra


if __name__ == "__main__":
    run(main, "convert")
