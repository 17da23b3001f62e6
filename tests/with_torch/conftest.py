"""Fixtures of the tests in this folder."""

from helpers.torch_calls import ct, dynamo, tensors, torch_module

__all__ = ["ct", "dynamo", "tensors", "torch_module"]
