"""Asking the CPU what it has: two instructions of x86-64, in pages of their own (the calling convention is that of the System V ABI)."""

from __future__ import annotations

import ctypes

import numpy as np

from trustformers_ir.runtime.cpu_features import EAX, ECX, STATES, FeatureBit
from trustformers_ir.runtime.pages import EXECUTE, Pages

#: void cpuid(u32 leaf, u32 subleaf, u32 *registers)
_CPUID = bytes.fromhex(
    "53"  # push rbx
    "4989d0"  # mov r8, rdx
    "89f8 89f1"  # mov eax, edi; mov ecx, esi
    "0fa2"  # cpuid
    "418900 41895804"  # mov [r8], eax; mov [r8+4], ebx
    "41894808 4189500c"  # mov [r8+8], ecx; mov [r8+12], edx
    "5b c3"  # pop rbx; ret
)
#: u64 xgetbv(void), of XCR0
_XGETBV = bytes.fromhex(
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "48c1e220 4809d0"  # shl rdx, 32; or rax, rdx
    "c3"  # ret
)
_XGETBV_AT = 64
_EXTENDED = 0x80000000  # the first leaf of the upper half
_OSXSAVE = FeatureBit(1, 0, ECX, 27)
_AVX = FeatureBit(1, 0, ECX, 28)

Registers = tuple[int, ...]


class Cpu:
    """The CPU that executes this. ``OSError`` where no code may be made. Each leaf is asked for once: on virtual machines that takes long."""

    def __init__(self) -> None:
        self._pages = Pages(_XGETBV_AT + len(_XGETBV))
        for at, code in ((0, _CPUID), (_XGETBV_AT, _XGETBV)):
            self._pages.write(at, np.frombuffer(code, np.uint8))
        self._pages.protect(0, self._pages.size, EXECUTE)
        self._ask = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(self._pages.address)
        self._known: dict[tuple[int, int], Registers] = {}
        self._states = 0
        if self._bit(_OSXSAVE) and self._bit(_AVX):
            self._states = ctypes.CFUNCTYPE(ctypes.c_uint64)(self._pages.address + _XGETBV_AT)()

    def close(self) -> None:
        """Gives back the pages; afterwards nothing can be asked."""
        self._pages.unmap()

    def leaf(self, leaf: int, subleaf: int = 0) -> Registers:
        """EAX, EBX, ECX and EDX of a leaf; zeros where the CPU does not have it."""
        if (leaf, subleaf) not in self._known:
            half = leaf & _EXTENDED
            there = leaf == half or leaf <= self.leaf(half)[EAX]
            if leaf == 7 and subleaf:
                there = there and subleaf <= self.leaf(7)[EAX]
            found = (ctypes.c_uint32 * 4)()
            if there:
                self._ask(leaf, subleaf, ctypes.addressof(found))
            self._known[leaf, subleaf] = tuple(found)
        return self._known[leaf, subleaf]

    def has(self, feature: FeatureBit) -> bool:
        """Whether the CPU has a feature, and the system saves the registers that it needs."""
        return self._bit(feature) and self._states & STATES[feature.state] == STATES[feature.state]

    def model(self) -> tuple[str, int]:
        """The maker's name, and family, model and stepping as leaf 1 has them."""
        _, b, c, d = self.leaf(0)
        return b"".join(n.to_bytes(4, "little") for n in (b, d, c)).decode("latin-1"), self.leaf(1)[EAX]

    def _bit(self, feature: FeatureBit) -> bool:
        return bool(self.leaf(feature.leaf, feature.subleaf)[feature.register] >> feature.bit & 1)
