"""The version of mmnetaug."""

__version__ = "0.1.0"
