"""Experiments built on the core: one file each, readable by itself."""
