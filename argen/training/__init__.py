"""Lightning tasks, the only place that imports Lightning."""
