"""Replays of recorded runs of published implementations, one file a project."""
