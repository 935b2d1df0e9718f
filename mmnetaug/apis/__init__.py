"""What the tools share: the command line, building from a config, the checks before a run, evaluation."""
