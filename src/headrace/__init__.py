"""Headrace runs large language models on machines too small to hold them."""
