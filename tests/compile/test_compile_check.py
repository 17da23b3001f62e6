"""The checks of compiled kernels, on tiny kernels that pass or fail on purpose."""

import pytest

pytest.importorskip("cupy")

from helpers import compile_check

from cuattn.compile.nvrtc import KernelInfo, compile_source, kernel_infos

pytestmark = pytest.mark.usefixtures("compiled_anew")

MMA = """
extern "C" __global__ void product(int* c, const unsigned* a) {
  int d[4] = {};
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};" : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]));
  if (threadIdx.x < 16) c[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
"""

# 96 values that live across a barrier in at most 32 registers.
SPILL = """
extern "C" __global__ void __launch_bounds__(1024, 2) spill(float* x) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) x[i * 1024 + threadIdx.x] = v[95 - i] * v[i];
}
"""

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    48 bytes stack frame, 76 bytes spill stores, 64 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 48 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compile time = 10.0 ms
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers
"""

disassembles = pytest.mark.skipif(
    compile_check.disassembler() is None, reason="nvdisasm (nvidia-cuda-nvdisasm) is not installed"
)


def test_ptxas_log_is_read_per_kernel():
    assert kernel_infos(LOG) == {
        "first": KernelInfo(168, 48, 76, 64, 512),
        "second": KernelInfo(24, 0, 0, 0, 0),
    }
    assert kernel_infos("") == {}
    (warning,) = compile_check.performance_warnings(LOG)
    assert "(C7510)" in warning


def test_variants_of_an_instruction_count():
    counts = {"IGMMA.64x96x32.U8.S8.gsb0": 1}
    for name in ("IGMMA", "IGMMA.64x96x32", "IGMMA.64x*x32.U8.S8", "IGMMA.64x*x32.U8.S8.gsb0"):
        assert compile_check.uses(counts, name)
    for name in ("IGMM", "GMMA", "IGMMA.64x9", "IGMMA.64x*x32.S8", "IGMMA.64x96x32.U8.S8.gsb0.*"):
        assert not compile_check.uses(counts, name)


def test_remarks_that_cost_nothing_are_no_warnings():
    injected = "ptxas info    : (C7519) warpgroup.arrive is injected in around line 9 by compiler"
    assert compile_check.performance_warnings(injected) == []


@disassembles
@pytest.mark.parametrize("arch", ["80", "90a", "120a"])
def test_good_kernel_has_no_problems(arch):
    cubin = compile_source(MMA, arch)
    assert compile_check.problems(cubin, require=["IMMA.16832.S8.S8"], forbid=["HMMA"]) == []


@disassembles
def test_predicated_instructions_are_counted():
    # The only store is under a condition.
    counts = compile_check.mnemonics(compile_source(MMA, "80").image)
    assert compile_check.uses(counts, "STG")
    assert counts["IMMA.16832.S8.S8"] == 1


@disassembles
@pytest.mark.parametrize("arch", ["80", "90a", "120a"])
def test_instructions_of_several_kernels_are_kept_apart(arch):
    images = [compile_source(text, arch).image for text in (MMA, SPILL, "", MMA)]
    counts = compile_check.all_mnemonics(images, arch)
    assert counts == [compile_check.mnemonics(image) for image in images]
    assert counts[0]["IMMA.16832.S8.S8"] == 1
    assert not counts[2]


@disassembles
def test_wrong_instructions_are_named():
    cubin = compile_source(MMA, "80")
    found = compile_check.problems(cubin, require=["IMMA.16832.U8", "HMMA"], forbid=["IMMA"])
    assert found == ["no IMMA.16832.U8", "no HMMA", "has IMMA"]


def test_spills_are_found():
    found = compile_check.problems(compile_source(SPILL, "80"), require=["LDG"])
    assert found[0].startswith("spill: ")
    assert "bytes spilled" in found[0]
    if compile_check.disassembler() is not None:
        assert found[1:] == ["has LDL", "has STL"]


def test_register_limit_and_empty_unit_are_found():
    cubin = compile_source(MMA, "80")
    (found,) = compile_check.problems(cubin, max_registers=4)
    assert found.endswith("registers, allowed are 4")
    assert compile_check.problems(compile_source("", "80"))[0] == "no kernel in the compiler's log"
