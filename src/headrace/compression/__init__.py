"""Numbers in fewer bits: codecs, and the modules that compute on what they made."""
