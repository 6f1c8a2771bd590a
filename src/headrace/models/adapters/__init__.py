"""What architectures outside transformers' own interfaces need, one file per kind of attention or mixer.

An adapter changes bound methods of modules on one model instance; classes of transformers stay as they are.
"""
