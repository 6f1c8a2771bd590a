"""Checkpoints as named byte ranges of files: safetensors and torch .bin, local or from the hub."""
