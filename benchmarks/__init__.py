"""Headrace against peers and physical limits; one command each, see README.md here."""
