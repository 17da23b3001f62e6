"""The simulated GPU: what it takes the place of, and which kernels it has."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np

from cuattn.arrays.view import CUDA
from cuattn.compile import launch, params, tensor_map

from . import around_sequences, attended_sequences, sequences
from .appending import append_tokens, fix_offsets
from .around_quantizer import block_means, deltas, rotate_values, unpack
from .attention import attention_mma, attention_wgmma
from .cache_operands import store_operands
from .cache_queries import store_queries
from .decoding import decode_attention
from .device import GPU
from .latent import append_latent, decode_latent_attention, merge_latent
from .launches import SimulatedLaunches
from .memory import garbage, view_of
from .merging import merge_states
from .quantizers import quantize_operands, stats, stats_finish
from .rates import memory_rate, product_rate
from .score_rules import mask_map
from .tensor_maps import SimulatedDriver

KERNELS = {
    "stats": stats,
    "stats_finish": stats_finish,
    "quantize_operands": quantize_operands,
    "block_means": block_means,
    "deltas": deltas,
    "rotate_values": rotate_values,
    "unpack": unpack,
    "merge_states": merge_states,
    "memory_rate": memory_rate,
    "mma_rate": product_rate,
    "wgmma_rate": product_rate,
    "fix_offsets": fix_offsets,
    "append_tokens": append_tokens,
    "decode_attention": decode_attention,
    "store_operands": store_operands,
    "store_queries": store_queries,
    "append_latent": append_latent,
    "decode_latent": decode_latent_attention,
    "merge_latent": merge_latent,
    "attention_mma": attention_mma,
    "attention_wgmma": attention_wgmma,
    "mask_map": mask_map,
    "list_units": attended_sequences.list_units,
}


# The same of those that read lengths from memory.
VARLEN = {
    "stats": sequences.stats,
    "stats_finish": lambda values, spec, grid: None,
    "quantize_operands": sequences.quantize,
    "block_means": around_sequences.block_means,
    "deltas": around_sequences.deltas,
    "rotate_values": around_sequences.rotate_values,
    "list_units": attended_sequences.list_units,
    "attention_mma": attended_sequences.attention_mma,
    "attention_wgmma": attended_sequences.attention_wgmma,
}


def has_lengths(spec):
    return getattr(spec, "varlen", False) or getattr(getattr(spec, "rules", None), "varlen", False)


# Those that look at arrays, or make them.
MODULES = (
    "attention",
    "attention_on_gpu",
    "block_mask",
    "merging",
    "quantize",
    "arrays.caller",
    "arrays.view",
    "operands.block_mask",
    "operands.quantized",
    "plan.repeated_call",
    "kv.append",
    "kv.device_tokens",
    "kv.attend",
    "kv.attend_call",
    "kv.device_rope",
    "kv.sequence_calls",
    "latent.device",
    "kv.device",
)
# Those that ask which GPU there is.
PLANNERS = (
    "plan.mask_map",
    "plan.merge",
    "plan.pipeline",
    "plan.prepared",
    "quantize",
    "kv.append_call",
    "kv.attend",
    "kv.device",
    "kv.prefill",
    "latent.device",
)


def memset(address, value, nbytes, stream):
    ctypes.memset(address, value, nbytes)


def look_at_array(x, key, addresses):
    """Do for arrays what is done for those of CuPy; those that are read-only need a closer look."""
    address = x.ctypes.data
    key += (x.shape, x.strides, x.dtype, 0, address % 16)
    addresses.append(address)
    return x.flags.writeable and x.size > 0


class SimulatedGPU:
    """Takes the place of CuPy and the GPU in the modules of cuattn that a call goes through.

    Arrays on it are NumPy's. Memory that kernels get is full of garbage.
    """

    def __init__(self, monkeypatch, device=GPU):
        self.launched = []
        self.specs = []
        self.device = device
        monkeypatch.setattr(launch, "begin", lambda spec, device: None)
        monkeypatch.setattr(launch, "load", self._load)
        self._launches = SimulatedLaunches(monkeypatch)
        monkeypatch.setattr("cupy.cuda.alloc", self._alloc)
        monkeypatch.setattr("cupy.cuda.runtime.memsetAsync", memset)
        for name in PLANNERS:
            monkeypatch.setattr(sys.modules[f"cuattn.{name}"], "current_device", lambda: device)
        self.is_capturing = False
        kv_device = sys.modules["cuattn.kv.device"]
        monkeypatch.setattr(kv_device, "is_capturing", lambda stream: self.is_capturing)
        fake = SimpleNamespace(
            ndarray=garbage,
            empty_like=lambda x, order: garbage(x.shape, x.dtype),
            ascontiguousarray=lambda x: np.array(x, order="C"),
            isfinite=np.isfinite,
            zeros=np.zeros,
            arange=np.arange,
            where=np.where,
            asarray=np.array,
            asnumpy=np.copy,
            maximum=np.maximum,
            minimum=np.minimum,
            cuda=SimpleNamespace(
                runtime=SimpleNamespace(getDevice=lambda: 0),
                Device=lambda ordinal=0: Nothing(),
                get_current_stream=Nothing,
            ),
        )
        for name in MODULES:
            module = sys.modules[f"cuattn.{name}"]
            for attribute, substitute in (
                ("Caller", SimulatedCaller),
                ("cupy_module", lambda: fake),
                ("device_of", lambda x, name: (CUDA, 0)),
                ("as_cupy", lambda view: view.owner),
                ("view_cupy", view_of),
                ("cupy_address", lambda x: x.ctypes.data),
                ("ordinal_of", lambda x: 0),
            ):
                if hasattr(module, attribute):
                    monkeypatch.setattr(module, attribute, substitute)
        # Calls on arrays are remembered as those on CuPy's are.
        kinds = sys.modules["cuattn.plan.kinds"]
        monkeypatch.setattr(kinds, "_look_at_cupys", look_at_array)
        monkeypatch.setitem(kinds._looks, np.ndarray, look_at_array)
        # Nothing of `QuantizedTensor` itself: it finds out where it is, and keeps that, as ever.
        monkeypatch.setattr(sys.modules["cuattn.operands.quantized"], "_on_host", lambda x: False)
        monkeypatch.setattr(tensor_map, "_driver", SimulatedDriver)
        tensor_map._encoded.cache_clear()
        sys.modules["cuattn.plan.prepared"].forget_plans()
        sys.modules["cuattn.plan.mask_map"].prepare_map.cache_clear()
        sys.modules["cuattn.plan.merge"].prepare_merge.cache_clear()
        sys.modules["cuattn.quantize"]._prepare.cache_clear()

    def _alloc(self, nbytes):
        memory = garbage((nbytes,), np.uint8)
        return SimpleNamespace(ptr=memory.ctypes.data, owner=memory)

    def _load(self, spec, device):
        dtype = params.record(spec.params, spec.params_file)

        def kernel(grid, block, struct, smem):
            assert all(ctas > 0 for ctas in grid)
            assert block == (spec.num_threads, 1, 1)
            assert smem == spec.smem_bytes <= device.max_smem_per_cta
            values = np.frombuffer(ctypes.string_at(struct, dtype.itemsize), dtype)[0]
            if spec.function == "attention_mma":
                grid = (*grid, 1, 1)[:3]
            self.launched.append(spec.entry)
            self.specs.append(spec)
            kernels = VARLEN if has_lengths(spec) else KERNELS
            kernels[spec.function](values, spec, grid)

        return self._launches.kernel(kernel)


class Nothing:
    """A device, or a stream, with nothing to wait for."""

    ptr = 0

    def synchronize(self):
        return None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class SimulatedCaller(Nothing):
    stream = 0
    is_torchs = False

    def __init__(self, first, stream):
        assert stream is None

    def look(self, x, name):
        return view_of(x)

    def empty(self, shape, dtype):
        array = garbage(shape, np.uint16 if dtype == "bfloat16" else dtype)
        return view_of(array)

    def deliver(self, made):
        return None if made is None else made.owner
