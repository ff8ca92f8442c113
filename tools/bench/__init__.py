"""What is measured, one subject a file: a YAML of settings and a module with `groups`."""
