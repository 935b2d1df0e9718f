"""The demo: a detection data set of handwritten digits that needs no download."""

from .digits import DigitScenes

__all__ = ["DigitScenes"]
