"""Judges: answers in, judgments and verdicts out."""
