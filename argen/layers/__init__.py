"""Building blocks that every network shares; nothing here knows a paper."""
