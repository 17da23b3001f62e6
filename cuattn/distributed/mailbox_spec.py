"""What the kernel that exchanges short messages fixes; mirrors kernels_cu/mailboxes.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..specs.kernel_spec import KernelSpec

__all__ = ["MailboxSpec"]


@dataclass(frozen=True)
class MailboxSpec(KernelSpec):
    """Template argument of `exchange`: a few kilobytes of every rank become known to all."""

    derived: ClassVar[tuple[str, ...]] = ("ranks", "num_threads", "min_ctas", "smem_bytes")
    source: ClassVar[str] = "mailboxes.cu"
    entry: ClassVar[str] = "exchange"
    function: ClassVar[str] = "exchange"
    params: ClassVar[str] = "MailboxParams"
    params_file: ClassVar[str] = "mailboxes.cu"
    ranks: ClassVar[int] = 16
    # One CTA: threads have two words at a time, which are all of a usual step of decoding.
    num_threads: ClassVar[int] = 1024
    min_ctas: ClassVar[int] = 1
    smem_bytes: ClassVar[int] = 0
