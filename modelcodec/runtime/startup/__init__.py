"""A folder that `mcodec run` puts first in PYTHONPATH, for the sitecustomize in it."""
