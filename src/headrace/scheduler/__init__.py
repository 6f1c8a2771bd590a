"""Who runs in the next sweep."""
