"""Ops that no arguments make compilable: their sizes are in the data, or they are random, or they are no computation."""

from __future__ import annotations

from trustformers_ir.frontend.torch_export.aten.index import MASKED
from trustformers_ir.frontend.torch_export.registry import refuse

RANDOM = "give what is random as an input; dropout is left out by model.eval()"
ITEM = "compute on with the tensor: what depends on it becomes torch.where(condition, a, b)"

refuse("how many elements are not zero only the run knows", "keep the size: " + MASKED.removeprefix("keep the size: "), "nonzero", dynamic=True)
refuse(
    "how many different elements there are only the run knows",
    "sort them and mark the repeats: torch.sort has a fixed size",
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    dynamic=True,
)
refuse(
    "how often an element is repeated only the run knows",
    "repeat each the same number of times: x.repeat_interleave(n, dim)",
    *("repeat_interleave.Tensor", "repeat_interleave.self_Tensor"),
    dynamic=True,
)
refuse("whether tensors are equal, as a Python truth", ITEM, "equal", dynamic=True)
refuse(
    "random numbers",
    RANDOM,
    *("rand", "rand_like", "randn", "randn_like", "randint", "randint.low", "randint_like", "randint_like.low_dtype", "randperm"),
    "normal.Tensor_Tensor",
    *("normal.Tensor_float", "normal.float_Tensor", "normal.float_float", "normal_functional", "bernoulli", "bernoulli.Tensor", "multinomial"),
    *("uniform", "exponential", "geometric", "log_normal", "cauchy", "poisson", "binomial", "rrelu_with_noise_functional", "rand.generator"),
    *("randint.generator", "randn.generator", "random", "random.from", "random.to", "_standard_gamma", "rrelu_with_noise"),
    *("prims.normal.default", "prims.uniform.default"),
)
refuse(
    "a decomposition of a matrix",
    "do it with numpy before, or in another model",
    *("linalg_inv_ex", "linalg_lu_factor_ex", "linalg_cholesky_ex", "_linalg_svd", "linalg_qr", "_linalg_eigh", "linalg_eig", "_linalg_det"),
    *("_linalg_solve_ex", "linalg_lstsq", "linalg_householder_product", "linalg_ldl_factor_ex", "_linalg_slogdet", "linalg_eigvals", "linalg_lu"),
    *("linalg_pinv.atol_rtol_tensor", "linalg_matrix_exp", "triangular_solve", "cholesky", "cholesky_solve", "cholesky_inverse", "geqrf", "ormqr"),
    *("linalg_solve_triangular", "linalg_lu_solve", "lu_unpack", "linalg_matrix_rank"),
)
