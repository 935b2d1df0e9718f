"""Errors that the user can put right: the tools print their message, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """The command, the config, the data or the environment must be changed; the message says what to do."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be used; the message says which, why, and what to do."""


class DataError(UserError, ValueError):
    """The data cannot be trained or tested on; the message lists every reason found."""


class WriteError(UserError):
    """A file or folder cannot be written; the message says which and why."""
