"""What a compiled kernel shows without a GPU: spills, complaints, and its instructions."""

import re
import subprocess
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from functools import cache

from cuda.pathfinder import find_nvidia_binary_utility

# An instruction of nvdisasm's listing, after its offset and perhaps a predicate.
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)", re.MULTILINE
)

# Local memory: spills, and arrays that are indexed by what the compiler does not know.
_LOCAL = ("LDL", "STL")


@cache
def disassembler():
    """Path of nvdisasm, or None."""
    return find_nvidia_binary_utility("nvdisasm")


def mnemonics(image):
    """Count the instructions of a cubin by their full names, such as ``IMMA.16832.S8.S8``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        listing = subprocess.run(
            [disassembler(), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    return Counter(_INSTRUCTION.findall(listing))


def uses(counts, name):
    """Whether an instruction, or a variant of it with further suffixes, is among the counts.

    In its name, * stands for anything.
    """
    return any(fnmatchcase(found, name) or fnmatchcase(found, name + ".*") for found in counts)


def performance_warnings(log):
    """Lines in which ptxas says that it gave up on something."""
    return [line.strip() for line in log.splitlines() if "Potential Performance Loss" in line]


def problems(cubin, *, require=(), forbid=(), max_registers=255, max_spill=0):
    """Say what is wrong with a compiled unit; an empty list is a pass.

    `require` and `forbid` name instructions; where there is no disassembler both are left out. With
    neither, the stack that ptxas reports has to do: disassembling takes half as long as compiling.
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
        counts = mnemonics(cubin.image)
        found += [f"no {name}" for name in require if not uses(counts, name)]
        banned = forbid if max_spill else (*_LOCAL, *forbid)
        found += [f"has {name}" for name in banned if uses(counts, name)]
    return found
