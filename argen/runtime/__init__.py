"""The process around the work: commands, presets, ranks, devices, weights and other files."""
