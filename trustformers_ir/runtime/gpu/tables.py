"""The entry points of ``libcuda`` and ``libamdhip64`` that are used, by what they do. HIP follows CUDA's driver interface function by function, so
one driver (``vendor.py``) serves both; what differs stands here.

Sources: CUDA Driver API reference (modules on contexts, memory, streams, execution control, graphs), HIP runtime API reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

_POINTER, _INT, _UINT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
_OUT = ctypes.c_void_p  # where a result is written

#: What each entry point takes. All give a status, but for ``error``.
SIGNATURES: Mapping[str, tuple[type, ...]] = {
    "init": (_UINT,),
    "device_count": (_OUT,),
    "device": (_OUT, _INT),
    "device_name": (_OUT, _INT, _INT),
    "module_load": (_OUT, _POINTER),
    "module_unload": (_POINTER,),
    "function": (_OUT, _POINTER, ctypes.c_char_p),
    "allocate": (_OUT, _SIZE),
    "free": (_POINTER,),
    "copy_in": (_POINTER, _POINTER, _SIZE, _POINTER),
    "copy_out": (_POINTER, _POINTER, _SIZE, _POINTER),
    "copy": (_POINTER, _POINTER, _SIZE, _POINTER),
    "clear": (_POINTER, ctypes.c_ubyte, _SIZE, _POINTER),
    "stream_create": (_OUT, _UINT),
    "stream_destroy": (_POINTER,),
    "stream_wait": (_POINTER,),
    "launch": (_POINTER, _UINT, _UINT, _UINT, _UINT, _UINT, _UINT, _UINT, _POINTER, _POINTER, _POINTER),
    "event_create": (_OUT, _UINT),
    "event_record": (_POINTER, _POINTER),
    "event_seconds": (_OUT, _POINTER, _POINTER),
    "event_destroy": (_POINTER,),
    "graph_create": (_OUT, _UINT),
    "graph_add": (_OUT, _POINTER, _POINTER, _SIZE, _POINTER),
    "graph_instantiate": (_OUT, _POINTER, ctypes.c_ulonglong),
    "graph_update": (_POINTER, _POINTER, _POINTER),
    "graph_launch": (_POINTER, _POINTER),
    "graph_destroy": (_POINTER,),
    "graph_exec_destroy": (_POINTER,),
    # CUDA alone
    "attribute": (_OUT, _INT, _INT),
    "context_retain": (_OUT, _INT),
    "context_push": (_POINTER,),
    "context_pop": (_OUT,),
    "function_attribute": (_POINTER, _INT, _INT),
    "cuda_error": (_INT, _OUT),
    # HIP alone
    "properties": (_OUT, _INT),
    "device_set": (_INT,),
    "device_get": (_OUT,),
    "hip_error": (_INT,),
}


class CudaNode(ctypes.Structure):
    """``CUDA_KERNEL_NODE_PARAMS_v2``; drivers before CUDA 12 read the fields before ``kern`` alone."""

    _fields_ = [
        ("func", _POINTER),
        ("grid", _UINT * 3),
        ("block", _UINT * 3),
        ("shared", _UINT),
        ("params", _POINTER),
        ("extra", _POINTER),
        ("kern", _POINTER),
        ("ctx", _POINTER),
    ]


class HipNode(ctypes.Structure):
    """``hipKernelNodeParams``; a function of a module may stand for one of the program."""

    _fields_ = [
        ("block", _UINT * 3),
        ("extra", _POINTER),
        ("func", _POINTER),
        ("grid", _UINT * 3),
        ("params", _POINTER),
        ("shared", _UINT),
    ]


@dataclass(frozen=True)
class Table:
    """One maker's driver. ``names``: an entry point by what it does; of several, newest first, the first that there is. So it is
    with ``libraries``."""

    kind: str
    maker: str
    libraries: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    node: type[ctypes.Structure]
    warp: int
    out_of_memory: int


CUDA = Table(
    "cuda",
    "NVIDIA",
    ("libcuda.so.1",),
    {
        "init": ("cuInit",),
        "device_count": ("cuDeviceGetCount",),
        "device": ("cuDeviceGet",),
        "device_name": ("cuDeviceGetName",),
        "attribute": ("cuDeviceGetAttribute",),
        "context_retain": ("cuDevicePrimaryCtxRetain",),
        "context_push": ("cuCtxPushCurrent_v2",),
        "context_pop": ("cuCtxPopCurrent_v2",),
        "module_load": ("cuModuleLoadData",),
        "module_unload": ("cuModuleUnload",),
        "function": ("cuModuleGetFunction",),
        "function_attribute": ("cuFuncSetAttribute",),
        "allocate": ("cuMemAlloc_v2",),
        "free": ("cuMemFree_v2",),
        "copy_in": ("cuMemcpyHtoDAsync_v2",),
        "copy_out": ("cuMemcpyDtoHAsync_v2",),
        "copy": ("cuMemcpyDtoDAsync_v2",),
        "clear": ("cuMemsetD8Async",),
        "stream_create": ("cuStreamCreate",),
        "stream_destroy": ("cuStreamDestroy_v2",),
        "stream_wait": ("cuStreamSynchronize",),
        "launch": ("cuLaunchKernel",),
        "event_create": ("cuEventCreate",),
        "event_record": ("cuEventRecord",),
        "event_seconds": ("cuEventElapsedTime_v2", "cuEventElapsedTime"),
        "event_destroy": ("cuEventDestroy_v2",),
        "graph_create": ("cuGraphCreate",),
        "graph_add": ("cuGraphAddKernelNode_v2", "cuGraphAddKernelNode"),
        "graph_instantiate": ("cuGraphInstantiateWithFlags",),
        "graph_update": ("cuGraphExecKernelNodeSetParams_v2", "cuGraphExecKernelNodeSetParams"),
        "graph_launch": ("cuGraphLaunch",),
        "graph_destroy": ("cuGraphDestroy",),
        "graph_exec_destroy": ("cuGraphExecDestroy",),
        "cuda_error": ("cuGetErrorString",),
    },
    CudaNode,
    32,
    2,
)

HIP = Table(
    "rocm",
    "AMD",
    ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6"),
    {
        "init": ("hipInit",),
        "device_count": ("hipGetDeviceCount",),
        "device": ("hipDeviceGet",),
        "device_name": ("hipDeviceGetName",),
        "properties": ("hipGetDevicePropertiesR0600", "hipGetDeviceProperties"),
        "device_set": ("hipSetDevice",),
        "device_get": ("hipGetDevice",),
        "module_load": ("hipModuleLoadData",),
        "module_unload": ("hipModuleUnload",),
        "function": ("hipModuleGetFunction",),
        "allocate": ("hipMalloc",),
        "free": ("hipFree",),
        "copy_in": ("hipMemcpyHtoDAsync",),
        "copy_out": ("hipMemcpyDtoHAsync",),
        "copy": ("hipMemcpyDtoDAsync",),
        "clear": ("hipMemsetD8Async",),
        "stream_create": ("hipStreamCreateWithFlags",),
        "stream_destroy": ("hipStreamDestroy",),
        "stream_wait": ("hipStreamSynchronize",),
        "launch": ("hipModuleLaunchKernel",),
        "event_create": ("hipEventCreateWithFlags",),
        "event_record": ("hipEventRecord",),
        "event_seconds": ("hipEventElapsedTime",),
        "event_destroy": ("hipEventDestroy",),
        "graph_create": ("hipGraphCreate",),
        "graph_add": ("hipGraphAddKernelNode",),
        "graph_instantiate": ("hipGraphInstantiateWithFlags",),
        "graph_update": ("hipGraphExecKernelNodeSetParams",),
        "graph_launch": ("hipGraphLaunch",),
        "graph_destroy": ("hipGraphDestroy",),
        "graph_exec_destroy": ("hipGraphExecDestroy",),
        "hip_error": ("hipGetErrorString",),
    },
    HipNode,
    64,
    2,
)
