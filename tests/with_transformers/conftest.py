from tiny_models import hf

__all__ = ["hf"]
