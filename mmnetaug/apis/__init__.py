"""Shared by the tools: the command line, building from a config, checks before a run, evaluation."""
