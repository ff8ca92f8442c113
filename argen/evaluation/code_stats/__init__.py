"""The statistics of codes: frequencies, information, compressibility."""
