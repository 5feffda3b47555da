"""``ai.onnx.ml`` on numbers: features, tables, linear models, trees; and the counts of n-grams."""

from __future__ import annotations

from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.narrow import fixed
from trustformers_ir.frontend.onnx.node import ML, Node, emit, onnx_op
from trustformers_ir.frontend.onnx.values import Item, Refused
from trustformers_ir.ir import ops, windows
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange, concat, where
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.tensor import Tensor, as_tensor


@onnx_op("ArrayFeatureExtractor", domain=ML, keeps=True)
def _extract(n: Node) -> Tensor:
    x = n.t(0)
    out = emit(x, ops.Gather(x.ndim - 1), n.t(1).flatten())
    return out.reshape(1, out.shape[0]) if x.ndim == 1 else out


@onnx_op("Binarizer", domain=ML, keeps=True)
def _binarize(n: Node) -> Tensor:
    x = n.t(0)
    return (x > fixed(n.attr("threshold", 0.0), x.dtype)).to(x.dtype)


@onnx_op("Scaler", domain=ML)
def _scale(n: Node) -> Tensor:
    x = n.t(0).to(DType.f32)
    offset, scale = (as_tensor(np.asarray(n.attr(name, [d]), np.float32)) for name, d in (("offset", 0.0), ("scale", 1.0)))
    return (x - offset) * scale


@onnx_op("Normalizer", domain=ML)
def _normalize(n: Node) -> Tensor:
    x = n.t(0).to(DType.f32)
    norm = n.attr("norm", "MAX")
    axis = x.ndim - 1
    if norm == "MAX":
        size = x.abs()._emit(ops.ReduceMax((axis,), True))
    elif norm == "L1":
        size = x.abs()._emit(ops.ReduceSum((axis,), True))
    else:
        size = (x * x)._emit(ops.ReduceSum((axis,), True)).sqrt()
    return where(size == 0.0, x, x / size)


@onnx_op("LinearRegressor", domain=ML)
def _linear_regressor(n: Node) -> Tensor:
    x = n.t(0).to(DType.f32)
    targets = int(n.attr("targets", 1))
    weights = as_tensor(np.asarray(n.attr("coefficients"), np.float32).reshape(targets, -1))
    if n.attr("post_transform", "NONE") != "NONE":
        raise Refused(f"the post_transform {n.attr('post_transform')}")
    y = x.matmul(weights.transpose(0, 1))
    bias = n.attr("intercepts", None)
    return y if not bias else y + as_tensor(np.asarray(bias, np.float32))


@onnx_op("FeatureVectorizer", domain=ML)
def _features(n: Node) -> Tensor:
    return concat([x.to(DType.f32) for x in n.tensors()], 1)


@onnx_op("Imputer", domain=ML, keeps=True)
def _impute(n: Node) -> Tensor:
    x = n.t(0)
    kind = "floats" if x.dtype.is_float else "int64s"
    values = as_tensor(np.asarray(n.attr(f"imputed_value_{kind}"), x.dtype.numpy))
    missing = n.attr("replaced_value_float" if x.dtype.is_float else "replaced_value_int64", 0)
    gone = x.isnan() if x.dtype.is_float and np.isnan(missing) else x == fixed(missing, x.dtype)
    return where(gone, values, x)


def _table(n: Node, kind: str) -> np.ndarray | None:
    """Keys or values of a table, of numbers."""
    for name in (f"{kind}_tensor", f"{kind}_int64s", f"{kind}_floats"):
        found = n.attr(name, None)
        if found is None or (isinstance(found, list) and not found):
            continue
        if name.endswith("tensor"):
            return n.reader.file.array(found)[1].reshape(-1)
        return np.asarray(found, np.int64 if name.endswith("int64s") else np.float32)
    return None


@onnx_op("LabelEncoder", domain=ML)
def _label_encoder(n: Node) -> Tensor:
    keys, values = _table(n, "keys"), _table(n, "values")
    if keys is None or values is None:
        raise Refused("a table of strings", "strings are not compiled: leave the text processing outside of the model")
    n.require(len(keys) == len(values), "keys and values differ in number")
    x = n.t(0)
    given: Any = n.attr("default_tensor", None)
    if given is not None:
        default = n.reader.file.array(given)[1].reshape(-1)[0]
    elif values.dtype.kind == "f":
        default = np.float32(n.attr("default_float", -0.0))
    else:
        default = np.int64(n.attr("default_int64", -1))
    table = as_tensor(np.ascontiguousarray(keys).astype(x.dtype.numpy))
    hit = x.unsqueeze(-1) == table
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        hit = hit | (x.isnan().unsqueeze(-1) & as_tensor(np.isnan(keys)))
    at = emit(hit.to(DType.u8), ops.ArgMax(x.ndim, False))
    found = emit(as_tensor(np.ascontiguousarray(values)), ops.Gather(0), at)
    return where(hit.any(-1), found, fixed(default, found.dtype))


# --- trees -------------------------------------------------------------------------------------------------------------------------


@onnx_op("TreeEnsemble", domain=ML)
def _trees(n: Node) -> Tensor:
    """All trees walk down together, one level at a time; a leaf stays where it is."""
    x = n.t(0)
    if x.ndim == 1:
        x = x.reshape(1, x.shape[0])
    modes = n.reader.file.array(n.attr("nodes_modes"))[1].reshape(-1).astype(np.int64)
    splits = n.reader.file.array(n.attr("nodes_splits"))[1].reshape(-1)
    features = np.asarray(n.attr("nodes_featureids"), np.int64)
    yes, no = np.asarray(n.attr("nodes_truenodeids"), np.int64), np.asarray(n.attr("nodes_falsenodeids"), np.int64)
    yes_leaf, no_leaf = np.asarray(n.attr("nodes_trueleafs"), bool), np.asarray(n.attr("nodes_falseleafs"), bool)
    weights = n.reader.file.array(n.attr("leaf_weights"))[1].reshape(-1)
    targets = np.asarray(n.attr("leaf_targetids"), np.int64)
    roots = np.asarray(n.attr("tree_roots"), np.int64)
    count, inner = int(n.attr("n_targets")), len(modes)
    alike = len({len(a) for a in (modes, splits, features, yes, no, yes_leaf, no_leaf)}) == 1
    n.require(alike and len(weights) == len(targets), "lists differ in length")
    n.require(0 < count <= 1 << 20 and inner <= 1 << 20 and (targets < count).all() and (targets >= 0).all(), "impossible sizes")
    leaves = len(weights)
    for child, is_leaf in ((yes, yes_leaf), (no, no_leaf)):
        n.require((child >= 0).all() and (child < np.where(is_leaf, leaves, inner)).all(), "a node leads nowhere")
    n.require(((roots >= 0) & (roots < inner)).all(), "a root is no node")
    where_yes, where_no = np.where(yes_leaf, inner + yes, yes), np.where(no_leaf, inner + no, no)
    depth = _depth(where_yes, where_no, roots, inner)
    tracks = np.asarray(n.attr("nodes_missing_value_tracks_true", None) or [0] * inner, bool)
    n.require(len(tracks) == inner, "lists differ in length")
    if depth > 64:
        raise Refused(f"trees of depth {depth}", "at most 64")
    members, set_of, owners = _members(n, modes)
    batch = x.shape[0]
    node = as_tensor(roots).reshape(1, -1).expand(batch, len(roots))
    own = np.arange(inner, inner + leaves)
    down_yes, down_no = (as_tensor(np.concatenate([a, own])) for a in (where_yes, where_no))
    feature = as_tensor(np.concatenate([features, np.zeros(leaves, np.int64)]))
    split = as_tensor(np.concatenate([splits, np.zeros(leaves, splits.dtype)]).astype(x.dtype.numpy))
    mode = as_tensor(np.concatenate([modes, np.zeros(leaves, np.int64)]))
    for _ in range(depth):
        value = emit(x, ops.GatherElements(1), _pick(feature, node))
        limit, kind = _pick(split, node), _pick(mode, node)
        holds = value <= limit  # BRANCH_LEQ
        for code, test in enumerate((None, value < limit, value >= limit, value > limit, value == limit, value != limit)):
            if test is not None and (modes == code).any():
                holds = where(kind == code, test, holds)
        if (modes == 6).any():
            own_set = _pick(set_of, node)
            listed = as_tensor(members.astype(x.dtype.numpy))
            inside = ((value.unsqueeze(-1) == listed) & (own_set.unsqueeze(-1) == as_tensor(owners))).any(-1)
            holds = where(kind == 6, inside, holds)
        if tracks.any():  # what is missing goes where the node says
            holds = holds | (value.isnan() & _pick(as_tensor(np.concatenate([tracks, np.zeros(leaves, bool)])), node))
        node = where(holds, _pick(down_yes, node), _pick(down_no, node))
    leaf = (node - inner).clamp(0, leaves - 1)
    found, target = _pick(as_tensor(weights.astype(x.dtype.numpy)), leaf), _pick(as_tensor(targets), leaf)
    each = where(target.unsqueeze(-1) == arange(count), found.unsqueeze(-1), fixed(0.0, x.dtype))  # [batch, trees, targets]
    fold = int(n.attr("aggregate_function", 1))
    if fold in (0, 1):
        y = each._emit(ops.ReduceSum((1,)))
        y = y / float(len(roots)) if fold == 0 else y
    else:
        empty = fixed(np.inf if fold == 2 else -np.inf, x.dtype)
        each = where(target.unsqueeze(-1) == arange(count), found.unsqueeze(-1), empty)
        y = each._emit(ops.ReduceMin((1,)) if fold == 2 else ops.ReduceMax((1,)))
    post = int(n.attr("post_transform", 0))
    if post == 1:
        return y._emit(ops.Softmax(1))
    if post == 2:
        return y.sigmoid()
    if post:
        raise Refused(f"the post_transform {post}")
    return y


def _pick(table: Tensor, at: Tensor) -> Tensor:
    return emit(table, ops.Gather(0), at)


def _depth(yes: np.ndarray, no: np.ndarray, roots: np.ndarray, inner: int) -> int:
    level, steps = set(roots.tolist()), 0
    while level:
        steps += 1
        if steps > 65:
            break
        level = {int(c) for node in level for c in (yes[node], no[node]) if c < inner}
    return steps


def _members(n: Node, modes: np.ndarray) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Members of all sets in one row, the number of the set of each node, and the number of the set of each member."""
    given = n.attr("membership_values", None)
    if given is None:
        return np.zeros(0), as_tensor(np.zeros(1, np.int64)), np.zeros(0, np.int64)
    values = n.reader.file.array(given)[1].reshape(-1)
    sets = np.cumsum(np.isnan(values))
    owner = np.where(np.isnan(values), -1, sets).astype(np.int64)
    leaves = len(n.reader.file.array(n.attr("leaf_weights"))[1].reshape(-1))
    table = np.full(len(modes) + leaves, -2, np.int64)
    table[: len(modes)][modes == 6] = np.arange((modes == 6).sum())
    return np.where(np.isnan(values), 0, values), as_tensor(table), owner


# --- n-grams -----------------------------------------------------------------------------------------------------------------------


@onnx_op("TfIdfVectorizer")
def _tfidf(n: Node) -> Item:
    """How often each n-gram of a pool occurs, with up to ``max_skip_count`` elements left out between its own."""
    pool = n.attr("pool_int64s", None)
    if pool is None:
        raise Refused("a pool of strings", "strings are not compiled: leave the text processing outside of the model")
    starts, places = n.ints("ngram_counts") or [], np.asarray(n.ints("ngram_indexes") or [], np.int64)
    low, high, skip = int(n.attr("min_gram_length")), int(n.attr("max_gram_length")), int(n.attr("max_skip_count"))
    weights, mode = n.attr("weights", None), n.attr("mode")
    x = n.t(0).to(DType.i64)
    flat = x.ndim == 1
    x = x.reshape(1, x.shape[0]) if flat else x
    length = n.whole(x.shape[1], "the length of the sequences")
    n.require(places.size > 0 and places.min() >= 0 and places.max() < 1 << 20, "impossible places of n-grams")
    width = int(places.max()) + 1
    batch = x.shape[0]
    total = fixed(0.0, DType.f32).expand(batch, width)
    bounds = [*starts, len(pool)]
    at = 0
    for size in range(1, len(starts) + 1):
        first, last = bounds[size - 1], bounds[size]
        n.require(0 <= first <= last <= len(pool) and (last - first) % size == 0, "impossible counts of n-grams")
        grams = np.asarray(pool[first:last], np.int64).reshape(-1, size)
        mine = places[at : at + len(grams)]
        at += len(grams)
        n.require(len(mine) == len(grams), "fewer places than n-grams")
        if not low <= size <= high or not len(grams):
            continue
        for gap in range(skip + 1 if size > 1 else 1):
            span = (gap + 1) * (size - 1) + 1
            if span > length:
                break
            seen = windows.unfold(x, [Window(size, 1, 0, 0, gap + 1)])  # [batch, places, size]
            same = (seen.unsqueeze(2) == as_tensor(grams)).all(-1)  # [batch, places, grams]
            counts = same.to(DType.f32)._emit(ops.ReduceSum((1,)))
            n.reader.budget.makes(len(grams) * width, "the places of n-grams")
            spread = np.zeros((len(grams), width), np.float32)
            spread[np.arange(len(grams)), mine] = 1.0
            total = total + counts.matmul(as_tensor(spread))
    if mode != "TF":
        factor = np.ones(width, np.float32)
        if weights:
            factor[places] = np.asarray(weights, np.float32)[: len(places)]
        counted = total if mode == "TFIDF" else (total > 0.0).to(DType.f32)
        total = counted * as_tensor(factor)
    return Item.of(total.reshape(width) if flat else total)
