"""Which loops of a compiled kernel have matrix products, and what else they have."""

import re

from helpers.compile_check import listing

_LABEL = re.compile(r"^\s*(\.L\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+([^;]+);")
_BRANCH = re.compile(r"\bBRA\b.*\((\.L\w+)\)")
_PRODUCT = re.compile(r"\b[IHQ]G?MMA\.")
_LOCAL = re.compile(r"\b(LDL|STL)\b")


def local_accesses(image):
    """Return how often the shortest loop with products uses local memory; None without a loop.

    That is the one over blocks of keys that all rows see: what has a mask is longer, and code out
    of line that jumps back makes longer loops of others.
    """
    code, labels, waiting = [], {}, []
    for line in listing(image).splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif instruction := _INSTRUCTION.match(line):
            at = int(instruction[1], 16)
            labels |= dict.fromkeys(waiting, at)
            waiting = []
            code.append((at, instruction[2]))
    jumps = [(labels.get(m[1]), at) for at, text in code if (m := _BRANCH.search(text))]
    loops = [(first, last) for first, last in jumps if first is not None and first <= last]
    products = [at for at, text in code if _PRODUCT.search(text)]
    with_products = [x for x in loops if any(x[0] <= at <= x[1] for at in products)]
    if not with_products:
        return None
    first, last = min(with_products, key=lambda x: x[1] - x[0])
    return sum(first <= at <= last for at, text in code if _LOCAL.search(text))
