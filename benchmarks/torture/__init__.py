"""Faults injected into training, through one harness, for luthier and for transformers' Trainer."""
