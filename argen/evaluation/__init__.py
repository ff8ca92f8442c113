"""Scoring pictures."""
