"""What happens when in a sweep."""
