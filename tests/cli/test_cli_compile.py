"""`cuattn compile`: which kernels it lists, in which order, and what it says of the cache."""

import re
from collections import Counter

import pytest

from cuattn.arrays.device import target
from cuattn.cli import compile as compile_command
from cuattn.cli import main
from cuattn.kv.listing import kv_specs
from cuattn.kv_format import KV_BITS, KV_HEAD_DIMS
from cuattn.latent.listing import latent_specs
from cuattn.operands.operand import DTYPES
from cuattn.plan.kernels import supported
from cuattn.plan.listing import attention_specs, mask_map_specs, merge_specs, rate_specs
from cuattn.reference.layout import HEAD_DIMS

pytest.importorskip("cupy")


def test_compile_fills_the_cache_once(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path))
    # The unquantized scheme: no statistics kernels, so least to compile.
    arguments = ["--arch", "sm_80", "--schemes", "fp16", "--head-dims", "32", "--dtypes", "float16"]
    counts = []
    for _ in range(2):
        assert main(["compile", *arguments, "--jobs", "2"]) == 0
        first, second, last = capsys.readouterr().out.splitlines()
        counts.append([int(n) for n in re.findall(r"(\d+) (?:kernels compiled|were)", second)])
        assert first == f"sm_80: {sum(counts[0])} kernels, 2 at a time"
        there = rf"{sum(counts[0])} kernels, 0\.\d MiB of at most 2048"
        assert re.fullmatch(rf"cache: {re.escape(str(tmp_path))}: {there}", last)
    (compiled, there), again = counts
    assert compiled > 0
    assert there == 0
    assert again == [0, compiled]
    assert len(list(tmp_path.glob("sm_80/*.cubin"))) == compiled


def test_unknown_target_lists_targets_as_they_are_written(capsys):
    assert main(["compile", "--arch", "foo"]) == 2
    assert "--arch: arch must be one of sm_80, sm_86, sm_87," in capsys.readouterr().err


@pytest.fixture
def listed(monkeypatch):
    """Return the list of what would be compiled."""
    specs = []
    monkeypatch.setattr(compile_command, "precompile", lambda given, *_: specs.extend(given) or 0)
    return specs


def test_compile_leaves_out_what_a_target_has_no_kernels_for(capsys, listed):
    small = ["compile", "--arch", "sm_80", "--head-dims", "32", "--dtypes", "float16"]
    assert main(small) == 0
    assert "e4m3" not in "".join(spec.cxx() for spec in listed)
    assert main([*small, "--schemes", "int8,fp8"]) == 2
    refused = "scheme fp8 multiplies in FP8, which sm_80 has no instructions for"
    assert refused in capsys.readouterr().err


def test_compile_takes_kernels_of_caches_where_they_are_asked_for(listed):
    small = ["compile", "--arch", "sm_90a", "--schemes", "fp16", "--head-dims", "64"]
    assert main([*small, "--dtypes", "float16"]) == 0
    without = len(listed)
    assert {spec.source for spec in listed} == {"attention_sm90.cu", "quantize.cu"}
    listed.clear()
    assert main([*small, "--dtypes", "float16", "--kv", "8"]) == 0
    assert len(listed) == without + len(kv_specs([64], ["float16"], [8], target("90a")))


def test_compile_all_is_all(listed):
    assert main(["compile", "--arch", "sm_80,sm_90a", "--all"]) == 0
    specs = []
    for arch in ("80", "90a"):
        facts = target(arch)
        specs += attention_specs(supported(facts), HEAD_DIMS, DTYPES, facts)
        specs += kv_specs(KV_HEAD_DIMS, DTYPES, KV_BITS, facts)
        specs += mask_map_specs()
        specs += merge_specs(DTYPES)
        specs += rate_specs(facts)
        specs += latent_specs(DTYPES, facts)
    assert Counter(listed) == Counter(specs)


def test_what_is_compiled_first_is_a_fair_sample(listed):
    assert main(["compile", "--arch", "sm_90a", "--all"]) == 0
    tenth = Counter(spec.source for spec in listed[: len(listed) // 10])
    for source, count in Counter(spec.source for spec in listed).items():
        assert abs(tenth[source] - count / 10) <= 1, source
