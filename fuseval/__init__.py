"""fuseval: fuse chat models, and prove what the fusion gained."""

__version__ = "0.1.0"
