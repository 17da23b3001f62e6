"""Which folders of the checkout are packages; all else is in pyproject.toml.

In a checkout ``cuattn/reference`` and ``cuattn/kernels_cu`` are links to the folders beside
``cuattn/``; an sdist, and a checkout on Windows, have no links. So these packages are named here,
and all others are found.
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
