"""The rules of ``canonicalize``, one list per family of ops.

Every rule is exact: the result has the same bits before and after, whatever the operands are: NaN, infinities, -0.0, integers that wrap.
(Only which NaN it is may change: the semantics know one.) The comment or docstring beside a rule says why where that is not obvious.
"""
