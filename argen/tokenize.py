"""Turn images into code shards: `python -m argen.tokenize --help`."""

from __future__ import annotations

from typing import Any

from argen.runtime.command import require_positive, require_writable, run, show


def main(config: Any) -> None:
    """Encode a data set."""
    from argen.build import build
    from argen.pipeline import load
    from argen.recipes.encode import larger_source, write_codes
    from argen.runtime.command import plain
    from argen.runtime.distributed import is_rank_zero, own_device, process_group

    settings = plain(config)
    require_positive(settings, "batch_size", "shard_size")
    with process_group(settings["device"]):
        pipe = load(
            settings["model"], device=own_device(settings["device"]), trust=settings["trust"]
        )
        settings["data"]["image_size"] = list(pipe.tokenizer.image_size)
        source, views = build(settings["data"], trust=True), settings["views"]
        larger = larger_source(settings["data"], source, views, settings["crop"])
        encoder = settings.get("text_encoder")
        text = build(encoder, trust=True) if encoder else None
        out = require_writable(settings["out"])
        codes = write_codes(
            pipe.tokenizer,
            source,
            out,
            views=views,
            larger=larger,
            moments=settings["moments"],
            batch_size=settings["batch_size"],
            shard_size=settings["shard_size"],
            workers=settings["workers"],
            seed=settings["seed"],
            text=None if text is None else text.to(pipe.device),
        )
        leads = is_rank_zero()
    if leads:
        for split, part in codes.items():
            show(f"{out / split}: {len(part)} images x {len(part.views)} views")
        show(f"codes: {codes['train'].spec.describe()}")
        if text is not None:
            show(f"text: {text.spec.describe()}")


if __name__ == "__main__":
    run(main, "tokenize")
