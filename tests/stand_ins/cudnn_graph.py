"""cuDNN's graph API: a graph of attention in FP8."""

from types import SimpleNamespace

import numpy as np

from cuattn.reference.rounding import e4m3_bits, e4m3_values, round_e4m3

from .modules import module, nested
from .pytorch import attended


class Node:
    """A tensor of a graph."""

    def __init__(self, name, dim, stride, data_type):
        self.name, self.dim, self.stride, self.data_type = name, dim, stride, data_type

    def set_output(self, is_output):
        assert is_output
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, data_type):
        self.data_type = data_type
        return self


class Graph:
    """One node: attention in FP8."""

    def __init__(self, **options):
        assert options["io_data_type"] == "e4m3"

    def tensor(self, *, name, dim, stride, data_type):
        return Node(name, dim, stride, data_type)

    def sdpa_fp8(self, *, is_inference, attn_scale, use_causal_mask, name, **tensors):
        assert is_inference
        assert attn_scale == tensors["q"].dim[3] ** -0.5
        assert not use_causal_mask or tensors["q"].dim[2] == tensors["k"].dim[2]
        self.tensors, self.causal = tensors, use_causal_mask
        self.outputs = [Node(x, None, None, None) for x in ("o", "stats", "amax_s", "amax_o")]
        return self.outputs

    def execute(self, pack, workspace, handle):
        assert workspace.dtype == np.uint8
        for node, buffer in pack.items():
            assert list(buffer.shape) == node.dim, node.name
            strides = [bytes_ // buffer.itemsize for bytes_ in buffer.strides]
            assert strides == node.stride, node.name
        given = {name: np.asarray(pack[node]) for name, node in self.tensors.items()}
        assert given["descale_s"] * given["scale_s"] == 1
        wide = (e4m3_values(given[x]) * given[f"descale_{x}"] for x in "qkv")
        o = np.asarray(attended(*wide, self.causal)) * given["scale_o"]
        assert np.abs(o).max() <= 448
        pack[self.outputs[0]][...] = e4m3_bits(round_e4m3(o))

    def get_workspace_size(self):
        return 16

    def _done(self, *_):
        return None

    validate = build_operation_graph = create_execution_plans = check_support = build_plans = _done


def cudnn():
    members = {
        "pygraph": Graph,
        "data_type": SimpleNamespace(FP8_E4M3="e4m3", FLOAT="float"),
        "heur_mode": SimpleNamespace(A="a"),
        "create_handle": lambda: "handle",
        "set_stream": lambda handle, stream: None,
    }
    return nested(cudnn=module("cudnn", **members))
