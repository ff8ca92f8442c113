"""Pictures and codes to learn from, and the order in which they come."""
