"""Patches to foreign libraries, one module per library."""
