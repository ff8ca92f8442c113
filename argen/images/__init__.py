"""Images as pixels, as files and side by side in a grid."""
