"""Importers: one file a published project."""
