"""What eager torch gives for a sample, what it would give with twice the digits, and how far a result may be from both.

Tolerances are the defaults of ``torch.testing.assert_close`` (relative and absolute, f32: 1.3e-6 and 1e-5, f16: 1e-3 and 1e-5, bf16: 1.6e-2 and
1e-5; integers and truths exactly). A result has to be that near to eager. Where it is not, eager may be what is wrong: it rounds as well, and in 16
bits between its steps. So the same call is made in 64 bits, and each element has to be that near to this one, or at least as near to it as eager is.
By that rule torch judges its own decompositions (``_ref_test_helper`` of its ``test_ops.py``: the sum over the elements; here each of them).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from trustformers_ir.tools.torch_scoreboard.samples import Sample


def as_eager(sample: Sample, seed: int = 0) -> Any:
    """The results of torch. The sample's own tensors are left as they are."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        return sample.call(iter([t.clone() if t.layout is torch.strided and t.is_contiguous() else t for t in sample.tensors()]))


#: ops that are linear in each of their tensors: sums of products
PRODUCTS = (
    *("nn.functional.conv", "nn.functional.linear", "nn.functional.bilinear", "matmul", "__rmatmul__", "mm", "bmm", "mv", "dot", "vdot", "inner"),
    *("outer", "addmm", "addbmm", "baddbmm", "addmv", "einsum", "tensordot", "kron", "linalg.multi_dot", "linalg.vecdot", "chain_matmul"),
)


def rounds(sample: Sample, n: int, a: Any, exact: Any) -> bool:
    """Whether ``a``, result ``n`` of a sum of products in f32, is as near to the exact result as adding up one by one gets: each element within
    sqrt(k) 2^-24 of the sum of its k terms' magnitudes. (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019, theorem
    3.1 with lambda 1; the bound that holds in every case has k where this one has its root.)"""
    import torch

    if a.dtype is not torch.float32 or not sample.unit[0].startswith(PRODUCTS):
        return False
    sizes, terms = precise(sample, lambda x: x.abs()), precise(sample, torch.ones_like)
    if sizes is None or terms is None or sizes[n].shape != a.shape:
        return False
    return bool(((a.double() - exact).abs() <= terms[n].clamp(min=1).sqrt() * 2.0**-24 * sizes[n]).all())


def precise(sample: Sample, change: Callable[[Any], Any] = lambda x: x) -> list[Any] | None:
    """The tensors that torch gives when it computes in 64 bits, of operands that are changed first; None where it cannot."""
    import torch
    import torch.utils._pytree as pytree

    wide = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}

    def wider(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            x = x.to(wide[x.dtype]) if x.dtype in wide else x.clone()
            return change(x) if x.is_floating_point() else x
        return wide.get(x, x) if isinstance(x, torch.dtype) else x

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args, kwargs = pytree.tree_map(wider, sample.arguments)
            return [x for x in pytree.tree_leaves(sample.op(*args, **kwargs)) if isinstance(x, torch.Tensor)]
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
        return None
    finally:
        torch.set_default_dtype(before)


def apart(a: Any, b: Any, exact: Any = None) -> str:
    """How ``a`` is not what ``b`` is, nor near enough to what ``exact`` is; nothing where it is. One dtype, one shape."""
    import torch

    a, b = a.resolve_conj().resolve_neg(), b.resolve_conj().resolve_neg()
    if exact is None or not (b.is_floating_point() or b.is_complex()) or exact.shape != b.shape:
        try:
            torch.testing.assert_close(a, b, equal_nan=True)
        except AssertionError as error:
            return " ".join(str(error).split())[:200]
        return ""
    good = _near(a, b) | _near(a, exact.to(b.dtype)) | ((a.to(exact.dtype) - exact).abs() <= (b.to(exact.dtype) - exact).abs())
    if bool(good.all()):
        return ""
    at = tuple(int(i) for i in (~good).nonzero()[0])
    return f"{int((~good).sum())} of {good.numel()}, at {list(at)} {a[at].item()!r}, eager has {b[at].item()!r}, in 64 bits {exact[at].item()!r}"


def _near(a: Any, b: Any) -> Any:
    """Which elements are within the tolerance of the dtype."""
    import torch
    from torch.testing._comparison import default_tolerances

    rtol, atol = default_tolerances(a.dtype)
    return torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
