"""Silence for the libraries that write to the terminal: progress is the caller's to show."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers, datasets, trl and accelerate from logging, warning and drawing bars inside the block.

    Standard error itself stays open, since the caller may be drawing its own progress there.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging as hf

    verbosity, bars, gguf_bar = hf.get_verbosity(), hf.is_progress_bar_enabled(), gguf_reader.tqdm
    loggers = [logging.getLogger(name) for name in ("accelerate", "datasets", "trl")]
    levels = [logger.level for logger in loggers]
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    gguf_reader.tqdm = functools.partial(gguf_bar, disable=True)  # the only bar that no setting turns off
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()
        gguf_reader.tqdm = gguf_bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
