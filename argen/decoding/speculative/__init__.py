"""Several codes a pass: drafts that a generator tests together, all at once."""

from argen.decoding.speculative.draft_model import Speculative

__all__ = ["Speculative"]
