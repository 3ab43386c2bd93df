"""Typed configuration: records, choices and rules. Nothing here imports torch."""
