"""Checkpoints brought into the forms that peers read; each runs where that peer is installed."""
