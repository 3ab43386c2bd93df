"""loralab: an experiment framework for LoRA training of Stable Diffusion models."""

__version__ = "0.1.0"
