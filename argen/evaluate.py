"""Score a model, images or reconstructions: `python -m argen.evaluate --help`."""

from __future__ import annotations

from typing import Any

from argen.runtime.command import plain, run, show


def main(config: Any) -> None:
    """Sample or read what is scored, score it, write the JSON."""
    from argen.recipes.score import keep_reference, look_at_codes, score
    from argen.recipes.score_request import ScoreRequest
    from argen.recipes.sweep import run_sweep
    from argen.runtime.distributed import is_rank_zero, process_group

    request = ScoreRequest.from_settings(plain(config))
    with process_group(request.device):
        if request.sweep is not None:
            lines = run_sweep(request)
        elif request.subject == "reference":
            lines = keep_reference(request)
        elif request.subject == "codes":
            lines = look_at_codes(request)
        else:
            lines = score(request)
        if is_rank_zero():
            for line in lines:
                show(line)


if __name__ == "__main__":
    run(main, "evaluate")
