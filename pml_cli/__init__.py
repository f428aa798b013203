"""pml: measure how much a LoRA adapter remembers."""

__version__ = "0.1.0"
