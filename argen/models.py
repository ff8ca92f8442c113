"""List the published systems that argen has, or show one: `python -m argen.models --help`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from argen.errors import UserError, suggest

KINDS = ("tokenizer", "generator", "discrete", "binary", "continuous")
FILTERS = ("family", "kind", "max_parameters", "licence")

HELP = """List the published systems that argen has, or show one of them.

  python -m argen.models                                  all, family by family
  python -m argen.models family=VAR                       of one family
  python -m argen.models kind=generator kind=continuous   generators of continuous codes
  python -m argen.models max_parameters=500M licence=MIT
  python -m argen.models var_d16                          one: paper, scores, weights, commands

family=NAME          as in the list
kind=KIND            tokenizer, generator; discrete, binary or continuous codes; may be repeated
max_parameters=N     at most so many, e.g. 350M or 1.5B
licence=NAME         of the released weights, e.g. MIT

Scores are those that the papers and their repositories report, not measurements of argen."""


def main(words: Sequence[str] | None = None) -> None:
    """Print the list or one card; exit with status 2 for words that are neither."""
    words = sys.argv[1:] if words is None else list(words)
    if any(word in ("-h", "--help", "help") for word in words):
        print(HELP)
        return
    try:
        for line in lines(words):
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # its reader, such as `head`, has enough
        sys.stderr.close()


def lines(words: Sequence[str]) -> Iterator[str]:
    """Give the lines that the command prints for its arguments.

    Raises:
        UserError: for an argument that is neither a filter nor a published model.
    """
    names = [word for word in words if "=" not in word]
    pairs = [word.split("=", 1) for word in words if "=" in word]
    for key, _ in pairs:
        if key not in FILTERS:
            raise UserError(f"Unknown filter {key!r}.{suggest(key, FILTERS)} See --help.")
    if names and (pairs or len(names) > 1):
        raise UserError("Show one model by its name alone, or list models by filters.")
    return _card(names[0]) if names else _list(pairs)


def _list(pairs: Sequence[Sequence[str]]) -> Iterator[str]:
    from argen.zoo.meta import GROUPS, published

    rows = [(group, name, meta) for group in GROUPS for name, meta in published(group)]
    first: dict[str, str] = {}  # arXiv number of a family's first paper, which orders the families
    for _, _, meta in rows:
        found = meta.arxiv or "9999"
        first[meta.family] = min(found, first.get(meta.family, found))
    rows.sort(key=lambda row: (first[row[2].family], row[2].family))
    kinds = []
    for key, value in pairs:
        if key == "family":
            found = _one_of(value, {meta.family for _, _, meta in rows}, "family")
            rows = [row for row in rows if row[2].family == found]
        elif key == "licence":
            licences = {meta.licence_weights for _, _, meta in rows}
            found = _one_of(value, licences, "licence of weights")
            rows = [row for row in rows if row[2].licence_weights == found]
        elif key == "max_parameters":
            most = number(value)
            rows = [row for row in rows if row[2].parameters and row[2].parameters <= most]
        else:
            kinds.append(_one_of(value, KINDS, "kind"))
    for kind in set(kinds) & set(GROUPS):
        rows = [row for row in rows if row[0] == kind]
    return _table(rows, set(kinds) - set(GROUPS))


def _table(rows: Sequence[tuple[str, str, Any]], kinds: set[str]) -> Iterator[str]:
    """Give the rows whose codes are of all of `kinds`, as soon as their codes are known."""
    from argen.zoo.card import NONE, best_score, codes_of, size_text
    from argen.zoo.pairs import partner_of, tokenizer_of

    families: dict[str, list[tuple[str, str, Any]]] = {}
    for row in rows:
        families.setdefault(row[2].family, []).append(row)
    shown = 0
    form = "  {:28s} {:22s} {:>7s}  {:32s} {:16s} {}"
    for family, members in families.items():
        told = []
        for group, name, meta in members:
            known = group == "tokenizer" or meta.tokenizer
            spec = (
                (tokenizer_of if group == "tokenizer" else partner_of)(name).spec if known else None
            )
            if kinds - {spec.kind if spec else None}:
                continue
            codes = " of ".join(codes_of(spec)) if spec else NONE
            kind = f"{spec.kind} {group}" if spec else group
            licence = meta.licence_weights
            licence = licence if len(licence) <= 16 else f"{licence[:13]}..."
            size = size_text(meta.parameters)
            told.append(form.format(name, kind, size, codes, licence, best_score(meta)))
        if told:
            if not shown:
                yield form.format("name", "kind", "size", "codes", "weights", "best score").rstrip()
            yield family
            yield from told
            shown += len(told)
    plural = "" if shown == 1 else "s"
    yield (
        f"{shown} published model{plural}; `argen models NAME` shows one."
        if shown
        else ("No published model is like that; leave out a filter.")
    )


def _card(name: str) -> Iterator[str]:
    from argen.zoo import card as text
    from argen.zoo.meta import find
    from argen.zoo.pairs import fitting, partner_of, tokenizer_of

    group, meta = find(name)
    yield f"{name}: {group} of {meta.family}"
    if meta.paper:
        yield f"  paper       {meta.paper}"
    if meta.arxiv:
        yield f"              https://arxiv.org/abs/{meta.arxiv}"
    yield f"  code        {meta.source} ({meta.licence_code})"
    if meta.origin:
        yield f"              {meta.origin}"
    yield f"  parameters  {text.size_text(meta.parameters)}"
    if group == "tokenizer" or meta.tokenizer:
        spec = (tokenizer_of if group == "tokenizer" else partner_of)(name).spec
        yield f"  codes       {' of '.join(text.codes_of(spec))}, {spec.kind}"
    if meta.data:
        yield f"  trained on  {meta.data}"
    if meta.note:
        yield f"  note        {meta.note}"
    scores = [text.score_text(entry) for entry in meta.expected] or ["none recorded here"]
    yield f"  published   {scores[0]}"
    yield from (f"              {score}" for score in scores[1:])
    if group == "generator":
        changed = f" with {_changes(meta)}" if meta.tokenizer_changes else ""
        yield f"  tokenizer   {meta.tokenizer or 'not known'}{changed}"
        fits = [other for other in fitting(name) if other != meta.tokenizer]
        yield from _wrapped("  fits too    ", fits or ["no other published tokenizer as it is"])
    yield f"\nweights ({meta.licence_weights}):"
    for weights in (*meta.weights, *text.tokenizer_weights(group, meta)):
        yield f"  {weights.file or 'name not known'}: {weights.what}"
        yield f"    {weights.link or 'no address known'}"
        if weights.sha256:
            yield f"    sha256 {weights.sha256}"
    if not meta.weights:
        yield "  no file of this model is known"
    commands = text.commands(group, name, meta)
    if "convert" in commands and meta.weights:
        yield "  Put the files where you run the first command, or give their paths in it."
    for verb, command in commands.items():
        yield f"\n{verb}:\n  {command}"


def _changes(meta: Any) -> str:
    from argen.runtime.presets import preset
    from argen.zoo.card import overrides

    return " ".join(
        overrides(meta.tokenizer_changes, preset("tokenizer", meta.tokenizer), "tokenizer")
    )


def _wrapped(head: str, names: Sequence[str]) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(
        ", ".join(names),
        width=100,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
    )


def number(text: str) -> float:
    """Return a number of parameters as people write it: 350M, 1.5B, 86000.

    Raises:
        UserError: for anything else, or a number that is not positive.
    """
    found = re.fullmatch(r"([\d_]+(?:\.\d+)?)\s*([kmb]?)", text.strip().lower())
    value = float(found[1].replace("_", "") or 0) if found else 0.0
    if found is None or value <= 0:
        raise UserError(f"max_parameters={text} is no number of parameters; write 350M or 1.5B.")
    return value * {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}[found[2]]


def _one_of(word: str, known: Any, what: str) -> str:
    """Return the name that a word stands for, whatever its case, dashes and spaces."""

    def bare(text: str) -> str:
        return re.sub(r"[\s_-]+", "", text.lower())

    for name in known:
        if bare(name) == bare(word):
            return str(name)
    close = suggest(word, known)
    raise UserError(f"There is no {what} {word!r}.{close} Known: {', '.join(sorted(known))}.")


if __name__ == "__main__":
    main()
