"""What can go wrong in this room.

FusionError
├── CheckpointError   a model's files are missing, broken, of the wrong kind, or cannot be written
└── RecipeError       what was asked for makes no sense: method, parameters, or training data
"""

from __future__ import annotations


class FusionError(Exception):
    """A fusion step failed; the message names the value, the place and the next step."""


class CheckpointError(FusionError):
    """A model's files are missing, broken, of the wrong kind, or cannot be written."""


class RecipeError(FusionError):
    """A merge or training recipe asks for something that does not exist or makes no sense."""
