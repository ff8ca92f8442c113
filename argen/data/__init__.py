"""Images and codes on disk, and the order they are drawn in."""
