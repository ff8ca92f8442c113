"""The published systems as data: `_meta_` of the presets, checked; cards; which pairs fit."""
