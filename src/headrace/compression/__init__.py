"""Codecs: numbers in fewer bits, and what computes on them."""
