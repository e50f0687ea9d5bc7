"""Compressed checkpoints in use: hooks into other libraries, loaders, weights that stay compressed. Above the core, which never imports it."""
