"""Which folders of the checkout are packages; all else is in pyproject.toml.

In a checkout ``cuattn/reference`` and ``cuattn/kernels_cu`` are links to folders beside ``cuattn/``,
which an sdist, and a checkout on Windows, do not have. So these are named, and the others found.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "cuattn.kernels_cu": "kernels_cu",
    "cuattn.records.committed": "benchmarks/records",
    "cuattn.reference": "reference",
}
LINKED = [pattern for name in FOLDERS for pattern in (name, f"{name}.*")]

setup(
    packages=[*find_packages(include=["cuattn", "cuattn.*"], exclude=LINKED), *FOLDERS],
    package_dir=FOLDERS,
)
