"""Scoring images."""
