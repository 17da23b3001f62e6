"""Cut a file into parts that are sent one by one, and join them: python -m tools.parts --help.

For a computer that takes no more than so much at a time, such as the weights of a language model
for `benchmarks.language_model`. The name of a part says which one it is, of how many, and has the
SHA-256 of the whole, so that parts of different files never become one:

    python -m tools.parts cut model.gguf build/parts --parts 2
    python -m tools.parts join build/parts model.gguf
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from pathlib import Path

from cuattn.common.output_files import open_whole
from cuattn.common.sizes import ceil_div

CHUNK = 1 << 20
NAME = re.compile(r"part-(\d+)-of-(\d+)\.([0-9a-f]{64})")


def cut(path: Path, folder: Path, count: int) -> list[Path]:
    """Write parts of about equal size into a folder and return them in their order."""
    size = path.stat().st_size
    if not 1 <= count <= max(size, 1):
        raise SystemExit(f"parts: {count} parts of {size} bytes make no sense")
    folder.mkdir(parents=True, exist_ok=True)
    digest = _digest([path])
    of_part = ceil_div(size, count)
    found = []
    with path.open("rb") as stream:
        for n in range(count):
            part = folder / f"part-{n + 1}-of-{count}.{digest}"
            with open_whole(part) as target:
                for begun in range(0, of_part, CHUNK):
                    target.write(stream.read(min(CHUNK, of_part - begun)))
            found.append(part)
    return found


def join(folder: Path, path: Path) -> None:
    """Write the file of which a folder has all parts; nothing is left if they are not its own."""
    parts = sorted((x for x in folder.iterdir() if NAME.fullmatch(x.name)), key=_number)
    wholes = {_whole(x) for x in parts}
    if len(wholes) != 1:
        raise SystemExit(f"parts: {folder} has parts of {len(wholes)} files, not of one")
    ((count, digest),) = wholes
    if missing := [n for n in range(1, count + 1) if n not in map(_number, parts)]:
        raise SystemExit(f"parts: {folder} lacks parts {missing} of {count}")
    if _digest(parts) != digest:
        raise SystemExit(f"parts: {folder} has parts that are damaged")
    with open_whole(path) as target:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, target, CHUNK)


def _digest(files: list[Path]) -> str:
    """Return the SHA-256 of files, one behind the other."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while data := stream.read(CHUNK):
                found.update(data)
    return found.hexdigest()


def _number(part: Path) -> int:
    return int(part.name.split("-")[1])


def _whole(part: Path) -> tuple[int, str]:
    """Return of how many parts, and the digest of all of them."""
    match = NAME.fullmatch(part.name)
    assert match is not None
    return int(match[2]), match[3]


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    of_cut = actions.add_parser("cut", help="a file into parts")
    of_cut.add_argument("file", type=Path)
    of_cut.add_argument("folder", type=Path)
    of_cut.add_argument("--parts", type=int, default=2)
    of_join = actions.add_parser("join", help="parts into a file")
    of_join.add_argument("folder", type=Path)
    of_join.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.action == "cut":
        for part in cut(args.file, args.folder, args.parts):
            print(f"{part}: {part.stat().st_size} bytes")
    else:
        join(args.folder, args.file)
        print(f"{args.file}: {args.file.stat().st_size} bytes, as they were")


if __name__ == "__main__":
    main()
