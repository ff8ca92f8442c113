"""Whole runs made of stages: train, encode, score."""
