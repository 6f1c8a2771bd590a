"""The engine and its Python faces: requests in, outputs out."""
