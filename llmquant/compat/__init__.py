"""Every touch of the internals of transformers, and nothing else: the first place to look when it changes."""
