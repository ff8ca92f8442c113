"""Turn images into code shards: `python -m argen.tokenize --help`."""

from __future__ import annotations

from typing import Any

from argen.runtime.command import plain, run, show


def main(config: Any) -> None:
    """Encode a data set."""
    from argen.recipes.tokenize import TokenizingRequest, tokenize_data
    from argen.runtime.distributed import is_rank_zero, process_group

    request = TokenizingRequest.from_settings(plain(config))
    with process_group(request.device):
        lines = tokenize_data(request)
        leads = is_rank_zero()
    if leads:
        for line in lines:
            show(line)


if __name__ == "__main__":
    run(main, "tokenize")
