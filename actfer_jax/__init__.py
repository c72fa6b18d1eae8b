"""Training, evaluation and use of agents that read facial expressions, in JAX."""

__version__ = "0.1.0"
