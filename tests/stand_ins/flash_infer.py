"""FlashInfer: ragged prompts, and queries against pages."""

import numpy as np

from .modules import module, nested
from .pytorch import attended, tensor


class Prefill:
    """Rows of all sequences behind each other: [token, head, channel]."""

    def __init__(self, workspace, layout):
        assert (workspace.dtype, layout) == (np.uint8, "NHD")

    def plan(self, qo_indptr, kv_indptr, qo_heads, kv_heads, head_dim, *, causal, q_data_type):
        assert qo_indptr.dtype == kv_indptr.dtype == np.int32
        self.offsets, self.causal, self.dtype = (qo_indptr, kv_indptr), causal, q_data_type
        self.sizes = [(qo_heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim)]

    def run(self, *qkv):
        assert all(x.flags.c_contiguous and x.dtype == self.dtype for x in qkv)
        assert [x.shape[1:] for x in qkv] == self.sizes
        ends = (self.offsets[0], self.offsets[1], self.offsets[1])
        assert [len(x) for x in qkv] == [end[-1] for end in ends]
        sequences = []
        for i in range(len(self.offsets[0]) - 1):
            rows = (x[end[i] : end[i + 1]] for x, end in zip(qkv, ends, strict=True))
            o = attended(*(x.swapaxes(0, 1)[None] for x in rows), self.causal)
            sequences.append(o[0].swapaxes(0, 1))
        return tensor(np.concatenate(sequences), np.float16)


class Decode:
    """A query of each sequence, [B, H, D], against pages [page, head, token, channel]."""

    def __init__(self, workspace, layout, *, use_tensor_cores):
        assert (workspace.dtype, layout) == (np.uint8, "HND")
        self.on_tensor_cores = use_tensor_cores

    def plan(self, indptr, indices, in_last, qo_heads, kv_heads, head_dim, size, *, q_data_type):
        assert indptr.dtype == indices.dtype == in_last.dtype == np.int32
        assert self.on_tensor_cores == (qo_heads >= 4 * kv_heads)
        self.pages, self.in_last, self.dtype = (indptr, indices), in_last, q_data_type
        self.sizes = (qo_heads, head_dim), (kv_heads, size, head_dim)

    def run(self, q, cached):
        assert (q.shape[1:], *(x.shape[1:] for x in cached)) == (*self.sizes, self.sizes[1])
        assert all(x.flags.c_contiguous and x.dtype == self.dtype for x in (q, *cached))
        indptr, indices = self.pages
        found = []
        for i, row in enumerate(q):
            own = indices[indptr[i] : indptr[i + 1]]
            size = self.sizes[1][1]
            tokens = (len(own) - 1) * size + self.in_last[i]
            k, v = (np.concatenate(list(x[own]), axis=1)[None, :, :tokens] for x in cached)
            found.append(attended(row[None, :, None], k, v)[0, :, 0])
        return tensor(np.stack(found), np.float16)


def flashinfer():
    wrappers = {"BatchPrefillWithRaggedKVCacheWrapper": Prefill}
    wrappers["BatchDecodeWithPagedKVCacheWrapper"] = Decode
    return nested(flashinfer=module("flashinfer", **wrappers))
