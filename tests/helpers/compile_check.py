"""What compiled kernels show without a GPU: spills, complaints, and their instructions."""

import os
import re
import struct
import subprocess
import tempfile
from bisect import bisect
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate, chain

from cuda.pathfinder import find_nvidia_binary_utility

from cuattn.compile.jit import compile_cubin
from cuattn.compile.nvrtc import checked_arch

# An instruction of nvdisasm's listing: its offset, perhaps a predicate, its name.
_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)", re.MULTILINE
)

# Local memory: spills, and arrays that are indexed by what the compiler does not know.
_LOCAL = ("LDL", "STL")

# Kernels that nvdisasm has at a time: it takes 0.3 s to start, and 0.1 s for each.
_BATCH = 16

# Of an ELF file of 64 bits: where the header names the section headers, and one of these.
_SECTIONS_AT, _SECTIONS_SIZE = 0x28, 0x3A
_SECTION = struct.Struct("<IIQQQQIIQQ")


def complaints(specs, arch, bounds):
    """Compile kernels, some at a time, and say in lines what is wrong with which.

    `bounds` takes a spec and returns the keyword arguments that `problems` is to have for it.
    """
    checked_arch(arch)  # loads the compiler, which several threads must not do at the same time
    bounds = {spec: bounds(spec) for spec in specs}
    with ThreadPoolExecutor(_threads()) as pool:
        compiled = pool.map(lambda spec: compile_cubin(spec.source, spec, arch), bounds)
        cubins = dict(zip(bounds, compiled, strict=True))
        counts = _counted(
            {spec: cubins[spec].image for spec, b in bounds.items() if _looks_at_code(b)},
            arch,
            pool,
        )
    return "\n".join(
        f"{spec}: {problem}"
        for spec, cubin in cubins.items()
        for problem in problems(cubin, counts=counts.get(spec), **bounds[spec])
    )


def _threads():
    """Cores that a process has to itself: where tests run in several, these share them."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, (os.cpu_count() or 1) // processes)


def _counted(images, arch, pool):
    """Count the instructions of cubins that have keys, a batch at a time."""
    if disassembler() is None:
        return {}
    keys = list(images)
    batches = [keys[i : i + _BATCH] for i in range(0, len(keys), _BATCH)]
    counts = pool.map(lambda batch: all_mnemonics([images[key] for key in batch], arch), batches)
    return dict(zip(keys, chain.from_iterable(counts), strict=True))


def _looks_at_code(bounds):
    return bool(bounds.get("require") or bounds.get("forbid"))


@cache
def disassembler():
    """Path of nvdisasm, or None."""
    return find_nvidia_binary_utility("nvdisasm")


def mnemonics(image):
    """Count the instructions of a cubin by their full names, such as ``IMMA.16832.S8.S8``."""
    return Counter(name for _, name in _INSTRUCTION.findall(listing(image)))


def listing(image):
    """Return nvdisasm's listing of a cubin."""
    return _listing(image, "-c")


def all_mnemonics(images, arch):
    """Count the instructions of each of some cubins for a target, disassembled all at once."""
    codes = [code(image) for image in images]
    ends = list(accumulate(map(len, codes)))
    counts = [Counter() for _ in images]
    for offset, name in _INSTRUCTION.findall(_listing(b"".join(codes), "-b", f"SM{arch}")):
        counts[bisect(ends, int(offset, 16))][name] += 1
    return counts


def _listing(content, *options):
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [disassembler(), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def code(image):
    """Return the machine code of a cubin, that of all kernels in it: its sections ``.text.*``."""
    (start,) = struct.unpack_from("<Q", image, _SECTIONS_AT)
    size, number, names_at = struct.unpack_from("<HHH", image, _SECTIONS_SIZE)
    sections = [_SECTION.unpack_from(image, start + i * size) for i in range(number)]
    names = sections[names_at][4]  # the offset of the section that has the names of all
    return b"".join(
        image[offset : offset + length]
        for name, _, _, _, offset, length, *_ in sections
        if image.startswith(b".text.", names + name)
    )


def uses(counts, name):
    """Whether an instruction, or a variant of it with further suffixes, is among the counts.

    In its name, * stands for anything.
    """
    return any(fnmatchcase(found, name) or fnmatchcase(found, name + ".*") for found in counts)


def performance_warnings(log):
    """Lines in which ptxas says that it gave up on something."""
    return [line.strip() for line in log.splitlines() if "Potential Performance Loss" in line]


def problems(cubin, *, require=(), forbid=(), max_registers=255, max_spill=0, counts=None):
    """Say what is wrong with a compiled unit; an empty list is a pass.

    `require` and `forbid` name instructions; where there is no disassembler both are left out. With
    neither, the stack that ptxas reports has to do: disassembling takes half as long as compiling.
    `counts` are the instructions, if they have been counted before.
    """
    found = performance_warnings(cubin.log)
    for name, info in cubin.info.items():
        if max(info.spill_stores, info.spill_loads, info.stack) > max_spill:
            found.append(
                f"{name}: {info.spill_stores} bytes spilled, {info.spill_loads} bytes reloaded, "
                f"stack of {info.stack}"
            )
        if not 0 < info.registers <= max_registers:
            found.append(f"{name}: {info.registers} registers, allowed are {max_registers}")
    if not cubin.info:
        found.append("no kernel in the compiler's log")
    if (require or forbid) and disassembler() is not None:
        counts = mnemonics(cubin.image) if counts is None else counts
        found += [f"no {name}" for name in require if not uses(counts, name)]
        banned = forbid if max_spill else (*_LOCAL, *forbid)
        found += [f"has {name}" for name in banned if uses(counts, name)]
    return found
