"""Generators: networks that model codes group by group."""
