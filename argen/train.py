"""Train a tokenizer, a generator, both, or a drafter: `python -m argen.train --help`."""

from __future__ import annotations

from typing import Any

from argen.errors import UserError, suggest
from argen.runtime.command import plain, require_writable, run, show


def main(config: Any) -> float | None:
    """Run the configured stages; returns the number that `optimized_metric` names, if any."""
    from contextlib import nullcontext

    from argen.recipes.drafter import DrafterRecipe
    from argen.recipes.two_stage import Recipe
    from argen.runtime.distributed import is_rank_zero
    from argen.runtime.run_lock import run_lock

    stages = {name: stage_config(config, name) for name in config.stages}
    directory = require_writable(f"{config.out}/{config.name}")
    kind = DrafterRecipe if config.stage == "drafter" else Recipe
    recipe = kind(plain(config), stages)
    leads = is_rank_zero()
    with run_lock(directory) if leads else nullcontext():  # rank zero holds it for all
        recipe.run()
    if not leads:
        return None
    report(directory, config.stage, model=config.model)
    return score_of(directory, config)


def stage_config(config: Any, stage: str) -> dict[str, Any]:
    """Return the configuration of one stage; see `argen.recipes.stage_settings`."""
    from hydra.core.hydra_config import HydraConfig

    from argen.recipes.stage_settings import stage_settings

    return plain(stage_settings(config, stage, HydraConfig.get().overrides.task))


def score_of(directory: Any, config: Any) -> float | None:
    """Return what `optimized_metric` names, for a sweeper; None where nothing is named.

    Raises:
        UserError: the run has no such number.
    """
    from argen.runtime.files import read_json

    name = config.optimized_metric
    if name is None:
        return None
    folder = {"tokenizer": directory / "tokenizer", "drafter": directory / "drafter"}
    result = read_json(folder.get(config.stage, directory) / "metrics.json")
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    if name not in numbers:
        raise UserError(
            f"optimized_metric={name}: this run has no such number.{suggest(name, numbers)} It has "
            f"{', '.join(sorted(numbers))}."
        )
    return float(numbers[name])


def report(directory: Any, stage: str, *, model: str | None = None) -> None:
    """Say where things are and what to try next."""
    from argen.runtime.files import read_json

    if stage == "tokenizer":
        result = read_json(directory / "tokenizer" / "metrics.json")
        show(f"\nheld-out PSNR {result['psnr_heldout_db']:.2f} dB")
        show(f"tokenizer        {directory / 'tokenizer' / 'model'}")
        show(f"reconstructions  {directory / 'reconstructions.png'}")
        show(f"next: python -m argen.train stage=generator name={directory.name}")
        return
    if stage == "drafter":
        _report_drafter(directory, str(model or directory / "model"))
        return
    result = read_json(directory / "metrics.json")
    show()
    for key, value in result.items():
        if isinstance(value, float):
            show(f"{key:24s} {value:.4g}")
    show(f"\nsamples          {directory / 'samples.png'}")
    show(f"reconstructions  {directory / 'reconstructions.png'}")
    show(f"model            {directory / 'model'}")
    show(f"scores           {directory / 'metrics.json'}")
    what = _asked(directory / "model")
    show("\nTry next:")
    show(f"  python -m argen.sample model={directory / 'model'} {what} n=16 cfg=2.0")
    show(f"  python -m argen.evaluate model={directory / 'model'} protocol=fd_lite quick=true")
    show("  python -m argen.train experiment=emoji name=mine data=folder data.path=YOUR_IMAGES")


def _report_drafter(directory: Any, model: str) -> None:
    """Say how well a drafter drafts, and the command that draws with it."""
    from pathlib import Path

    from argen.runtime.files import read_json

    result = read_json(directory / "drafter" / "metrics.json")
    show()
    passes = {tree: result[f"codes_per_pass_{tree}"] for tree in ("dynamic", "static")}
    for key in ("loss_heldout", "kept_heldout", *(f"codes_per_pass_{tree}" for tree in passes)):
        show(f"{key:24s} {result[key]:.4g}")
    drafter = directory / "drafter" / "model"
    show(f"\ndrafter          {drafter}")
    show("\nTry next (exact, in fewer passes):")
    show(f"  python -m argen.sample model={model} {_asked(Path(model))} n=16 \\")
    show(f"      decoder=relaxed decoder.drafter={drafter} decoder.k=0 \\")
    show(f"      decoder.tree={max(passes, key=lambda tree: passes[tree])}")


def _asked(model: Any) -> str:
    """Return something that a model can be asked for, as words of a command."""
    from argen.runtime.files import read_json

    saved = read_json(model / "config.json")
    names = saved.get("class_names")
    if "text" in saved:
        return "text='a red heart'"
    return f"classes=[{names[0] if names else 0}]"


if __name__ == "__main__":
    run(main, "train")
