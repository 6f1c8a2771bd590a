"""Ragged paged attention: one interface, a plain reference, and the paths that are fast."""
