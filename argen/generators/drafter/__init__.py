"""EAGLE's drafter: a small network that reads a generator's hidden vectors (arXiv 2410.03355)."""

from argen.generators.drafter.feature_drafter import FeatureDrafter, load_drafter, save_drafter
from argen.generators.drafter.target import new_drafter, require_target

__all__ = ["FeatureDrafter", "load_drafter", "new_drafter", "require_target", "save_drafter"]
