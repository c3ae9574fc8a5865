"""Tools for people who write a reward."""
