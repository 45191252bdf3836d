"""The published import path of the default device and of cosines between columns."""

from sparse_but_wrong.tensors import DEFAULT_DEVICE, DEFAULT_DEVICE_STR, cos_sims

__all__ = ["DEFAULT_DEVICE", "DEFAULT_DEVICE_STR", "cos_sims"]
