"""The command line, one file a verb. Imports numpy, numba and the codec only inside the verbs, so that `--help` starts at once."""
