"""How rows become the codes of k-quants: the searches of GGML's reference quantizers (``ggml-quants.c``: ``make_qkx2_quants``, ``make_q3_quants``,
``make_qx_quants``), on all groups of a block of rows at once.

A k-quant has a scale, and in some a low, for each 256 elements; groups of 16 or 32 of them have small whole numbers, *steps*, that multiply these.
The best scale of each group is searched for first, as if it could be any number, then all of 256 elements are rounded to steps of the largest, and
codes are made again for the scales that came out.

Everything is done in f32, like there. Sums are added up in another order, so now and then another of two candidates that are equally good is taken:
nearly all bytes are GGML's, and none is further from the numbers (``tests/ir/test_k_quants.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SUPER = 256  # elements of a block
TINY = 1e-15  # a group whose elements are smaller is zero

Array = np.ndarray


def nearest(x: Array, low: float, high: float) -> Array:
    """To the nearest whole number, halves to the even one, within bounds; what is no number becomes 0."""
    found: Array = np.clip(np.nan_to_num(np.rint(x), nan=0.0), low, high)
    return found


def affine(
    rows: Array, group: int, top: int, steps: int, search: tuple[float, int], *, absolute: bool = False, by_size: bool = False
) -> dict[str, Array]:
    """Codes of 0 … ``top`` with a scale and a low: ``w = scale * step * code - low * low_step``; ``steps`` is the largest step. ``search``: by how
    much less than ``top`` steps there are between the ends of a group in the first of so many candidates, each of which has 0.1 more.
    ``absolute``: what is made small is the sum of distances, not of their squares. ``by_size``: elements count by their magnitude alone.

    Codes ``u8[n, k]``, factors f16 for each 256, steps u8 for each group.
    """
    n, k = rows.shape
    x = rows.reshape(-1, group)
    weights = np.abs(x)
    if not by_size:
        weights = weights + np.sqrt(np.square(x).mean(1, dtype=np.float32))[:, None]
    scale, low = _affine_search(x, weights, top, search, np.abs if absolute else np.square)
    per = SUPER // group
    parts = []
    for found in (scale, low):
        largest = found.reshape(-1, per).max(1)
        step = nearest(_over(np.full_like(largest, steps), largest)[:, None] * found.reshape(-1, per), 0, steps)
        parts.append(((largest / np.float32(steps)).astype(np.float16), step.astype(np.uint8)))
    (d, scales), (least, lows) = parts
    factor = (d.astype(np.float32)[:, None] * scales).reshape(-1, 1)
    moved = (least.astype(np.float32)[:, None] * lows).reshape(-1, 1)
    codes = nearest((x + moved) * 1.0 / np.where(factor == 0, np.inf, factor), 0, top).astype(np.uint8)
    factors = {"scale": d.reshape(n, -1), "low": least.reshape(n, -1)}
    return {"codes": codes.reshape(n, k), **factors, "steps": scales.reshape(n, -1), "low_steps": lows.reshape(n, -1)}


def _affine_search(x: Array, weights: Array, top: int, search: tuple[float, int], distance: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The scale of each row and what is subtracted, at least 0: of lines through candidates of codes the one that lies nearest."""
    least, high = np.minimum(x.min(1), 0), x.max(1)
    flat = least == high
    high = np.where(flat, high + 1, high)
    sum_w, sum_x = weights.sum(1), (weights * x).sum(1)

    def error(scale: Array, least: Array, codes: Array) -> Array:
        found: Array = (weights * distance(scale[:, None] * codes + least[:, None] - x)).sum(1)
        return found

    def laid(count: float) -> Array:
        """Codes of so many steps from where the best line so far begins to the largest element."""
        return nearest((np.float32(count) / (high - least))[:, None] * (x - least[:, None]), 0, top)

    scale = (high - least) / np.float32(top)
    best = error(scale, least, laid(top))
    first, count = search
    for n in range(count + 1):
        codes = laid(first + 0.1 * n + top)
        weighted = weights * codes
        s, s2, sx = weighted.sum(1), (weighted * codes).sum(1), (weighted * x).sum(1)
        determinant = sum_w * s2 - s * s
        line, start = _over(sum_w * sx - sum_x * s, determinant), _over(s2 * sum_x - s * sx, determinant)
        above = start > 0
        line, start = np.where(above, _over(sx, s2), line), np.where(above, np.float32(0), start)
        found = error(line, start, codes)
        better = (determinant > 0) & (found < best)
        scale, least, best = np.where(better, line, scale), np.where(better, start, least), np.where(better, found, best)
    return np.where(flat, np.float32(0), scale), -least


def _over(a: Array, b: Array) -> Array:
    """``a / b``, 0 where b is 0."""
    found: Array = np.where(b == 0, np.float32(0), a / np.where(b == 0, np.float32(1), b))
    return found


def symmetric(rows: Array, group: int, half: int, steps: int, search: Callable[[Array, int], Array], nearby: bool = False) -> dict[str, Array]:
    """Codes of ``-half … half - 1`` with a scale: ``w = scale * step * code``; steps are ``-steps … steps - 1``. ``search`` gives the scale of each
    group, which may be negative. ``nearby``: of the step that is nearest to it and those beside that the one that makes the sum of squares smallest
    is taken, which GGML does not ask for. Codes ``i8[n, k]``, scale f16 for each 256, steps i8 for each group."""
    n, k = rows.shape
    x = rows.reshape(-1, group)
    scales = search(x, half).reshape(-1, SUPER // group)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(1)[:, None], 1)
    none = np.abs(largest) < TINY
    inverse = np.where(none, np.float32(0), np.float32(-steps) / np.where(none, np.float32(1), largest))
    step = nearest(inverse * scales, -steps, steps - 1)
    d = _over(np.ones_like(inverse), inverse).astype(np.float16)
    wide = d.astype(np.float32)

    def coded(step: Array) -> tuple[Array, Array]:
        """Codes for these steps, and how far each group is off."""
        factor = (wide * step).reshape(-1, 1)
        codes = nearest(x / np.where(factor == 0, np.inf, factor), -half, half - 1)
        return codes, np.square(factor * codes - x).sum(1).reshape(step.shape)

    codes, best = coded(step)
    for other in (step - 1, step + 1) if nearby else ():
        known = np.clip(other, -steps, steps - 1)
        found, off = coded(known)
        better = off < best
        step, best = np.where(better, known, step), np.where(better, off, best)
        codes = np.where(better.reshape(-1, 1), found, codes)
    return {"codes": codes.astype(np.int8).reshape(n, k), "scale": d.reshape(n, -1), "steps": step.astype(np.int8).reshape(n, -1)}


def _farthest(x: Array) -> Array:
    found: Array = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    return found


def scaled(x: Array, half: int) -> Array:
    """The scale of each row for codes of ``-half … half - 1``: of 19 candidates around that in which the farthest element is the first code the one
    with the smallest sum of squares, each times the square of the element."""
    far = _farthest(x)
    none = np.abs(far) < TINY
    far = np.where(none, np.float32(1), far)
    weights = np.square(x)
    scale, best = np.zeros(len(x)), np.zeros(len(x))
    for n in (0, *range(-9, 0), *range(1, 10)):
        codes = nearest((np.float32(-(half + np.float32(0.1) * n)) / far)[:, None] * x, -half, half - 1)
        weighted = weights * codes
        along, square = (weighted * x).sum(1, dtype=np.float64), (weighted * codes).sum(1, dtype=np.float64)
        better = (square > 0) & (along * along > best * square) if n else square > 0
        line = _over(along, square)
        scale, best = np.where(better, line, scale), np.where(better, line * along, best)
    return np.where(none, 0, scale).astype(np.float32)


def refined(x: Array, half: int) -> Array:
    """The scale of each row for codes of ``-half … half - 1``: up to five times, one element after the other takes the code that makes the sum of
    squares smaller, each times the square of the element."""
    far = _farthest(x)
    none = np.abs(far) < TINY
    far = np.where(none, np.float32(1), far)
    weights = np.square(x)
    codes = nearest((np.float32(-half) / far)[:, None] * x, -half, half - 1)
    along, square = (weights * x * codes).sum(1), (weights * codes * codes).sum(1)
    for _ in range(5):
        changed = False
        for i in range(x.shape[1]):
            w, v, old = weights[:, i], x[:, i], codes[:, i]
            rest, rest_square = along - w * v * old, square - w * old * old
            new = nearest(v * rest_square / np.where(rest > 0, rest, np.float32(1)), -half, half - 1)
            more, more_square = rest + w * v * new, rest_square + w * new * new
            better = (rest > 0) & (new != old) & (more_square > 0) & (more * more * square > along * along * more_square)
            codes[:, i] = np.where(better, new, old)
            along, square = np.where(better, more, along), np.where(better, more_square, square)
            changed = changed or bool(better.any())
        if not changed:
            break
    return np.where(none, np.float32(0), _over(along, square))
