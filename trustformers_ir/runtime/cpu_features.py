"""Which bit of ``CPUID`` tells of each CPU feature, by LLVM's names, for those who ask without LLVM: ``host.py`` and ``c/library.c``.

Bits are those of Intel's Software Developer's Manual, volume 2A, ``CPUID``, and AMD's Architecture Programmer's Manual, volume 3, appendix E;
which register state an instruction set needs is in volume 1, chapter 13 of the former. ``tests/runtime/test_cpu_features.py`` compares every row
with what LLVM finds on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

EAX, EBX, ECX, EDX = range(4)
NO_STATE, AVX, AVX512, AMX, APX = range(5)  # register state that the system has to save, in the order of STATES
STATES = (0, 0x6, 0xE6, 0x60000, 0x80000)  # as bits of XCR0, as c/library.c has them


@dataclass(frozen=True)
class FeatureBit:
    """Bit ``bit`` of register ``register`` (EAX, EBX, ECX, EDX) of a leaf of CPUID; ``state``: what the system has to save as well."""

    leaf: int
    subleaf: int
    register: int
    bit: int
    state: int = NO_STATE


def _rows(leaf: int, subleaf: int, register: int, bits: str, state: int = NO_STATE) -> dict[str, FeatureBit]:
    pairs = (entry.split(":") for entry in bits.split())
    return {name: FeatureBit(leaf, subleaf, register, int(bit), state) for name, bit in pairs}


FEATURE_BITS: dict[str, FeatureBit] = {
    **_rows(1, 0, EDX, "cx8:8 cmov:15 mmx:23 fxsr:24 sse:25 sse2:26"),
    **_rows(1, 0, ECX, "sse3:0 pclmul:1 ssse3:9 cx16:13 sse4.1:19 sse4.2:20 crc32:20 movbe:22 popcnt:23 aes:25 rdrnd:30"),
    **_rows(1, 0, ECX, "fma:12 xsave:26 avx:28 f16c:29", AVX),
    **_rows(7, 0, EBX, "fsgsbase:0 sgx:2 bmi:3 bmi2:8 invpcid:7 rtm:11 rdseed:18 adx:19 clflushopt:23 clwb:24 sha:29"),
    **_rows(7, 0, EBX, "avx2:5", AVX),
    **_rows(7, 0, EBX, "avx512f:16 avx512dq:17 avx512ifma:21 avx512cd:28 avx512bw:30 avx512vl:31", AVX512),
    **_rows(7, 0, ECX, "pku:4 waitpkg:5 shstk:7 gfni:8 rdpid:22 kl:23 cldemote:25 movdiri:27 movdir64b:28 enqcmd:29"),
    **_rows(7, 0, ECX, "vaes:9 vpclmulqdq:10", AVX),
    **_rows(7, 0, ECX, "avx512vbmi:1 avx512vbmi2:6 avx512vnni:11 avx512bitalg:12 avx512vpopcntdq:14", AVX512),
    **_rows(7, 0, EDX, "uintr:5 serialize:14 tsxldtrk:16 pconfig:18"),
    **_rows(7, 0, EDX, "avx512vp2intersect:8 avx512fp16:23", AVX512),
    **_rows(7, 0, EDX, "amx-bf16:22 amx-tile:24 amx-int8:25", AMX),
    **_rows(7, 1, EAX, "raoint:3 cmpccxadd:7 hreset:22 movrs:31"),
    **_rows(7, 1, EAX, "sha512:0 sm3:1 sm4:2 avxvnni:4 avxifma:23", AVX),
    **_rows(7, 1, EAX, "avx512bf16:5", AVX512),
    **_rows(7, 1, EAX, "amx-fp16:21", AMX),
    **_rows(7, 1, EDX, "prefetchi:14 usermsr:15"),
    **_rows(7, 1, EDX, "avxvnniint8:4 avxneconvert:5 avxvnniint16:10", AVX),
    **_rows(7, 1, EDX, "amx-complex:8", AMX),
    **_rows(7, 1, EDX, "avx10.1:19", AVX512),
    **_rows(0x24, 0, EBX, "avx10.2:1", AVX512),  # a number in eight bits, of which this one is set in 2 and 3
    **_rows(7, 1, EDX, "egpr:21 push2pop2:21 ppx:21 ndd:21 ccmp:21 nf:21 cf:21 zu:21", APX),
    **_rows(0x1E, 1, EAX, "amx-fp8:4 amx-transpose:5 amx-tf32:6 amx-avx512:7 amx-movrs:8", AMX),
    **_rows(0xD, 1, EAX, "xsaveopt:0 xsavec:1 xsaves:3", AVX),
    **_rows(0x14, 0, EBX, "ptwrite:4"),
    **_rows(0x19, 0, EBX, "widekl:2"),
    **_rows(0x80000001, 0, ECX, "sahf:0 lzcnt:5 sse4a:6 prfchw:8 lwp:15 tbm:21 mwaitx:29"),
    **_rows(0x80000001, 0, ECX, "xop:11 fma4:16", AVX),
    **_rows(0x80000001, 0, EDX, "64bit:29"),
    **_rows(0x80000008, 0, EBX, "clzero:0 rdpru:4 wbnoinvd:9"),
}
