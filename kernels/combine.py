"""Element-wise sum, mean, minimum, maximum or product of any number of vectors, written to any number of places.

Vectors are given by address, in tables of int64: they may be other processes' memory, and one compiled function serves
any number of them. Each element is combined in the order of the table, so its bits do not depend on how the vectors are
cut, and every place gets the same.

float16 and bfloat16 are combined in float32 and rounded once. Minimum and maximum are NaN where a term is, always the
same NaN, and take -0 to be below +0. A mean is the sum divided by a given number. Integers wrap around.
"""

import ctypes
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# What the numbers of operations mean.
SUM, MEAN, MIN, MAX, PRODUCT = 1, 2, 3, 4, 5

# What stands for a dtype inside compiled code; Numba has no bfloat16.
BFLOAT16 = np.uint16

LINE_NBYTES = 64

_WORD = ir.IntType(64)
_INT32 = ir.IntType(32)
_BITS = {16: ir.IntType(16), 32: _INT32, 64: _WORD}


class _Kind:
    """How one dtype is loaded, combined and stored, `lanes` elements at a time."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self._lanes = lanes
        self._is_integer = dtype in (types.int32, types.int64)
        self._is_bfloat16 = dtype == types.uint16
        self.nbytes = dtype.bitwidth // 8
        scalars = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.float16: ir.HalfType()}
        self._stored = self._vector(scalars.get(dtype, _BITS[dtype.bitwidth]))
        self._is_half = self._is_bfloat16 or dtype == types.float16
        self.computed = self._vector(ir.FloatType()) if self._is_half else self._stored
        self._bits = self._vector(_BITS[32 if self._is_half else dtype.bitwidth])

    def load(self, builder: Any, address: Any) -> Any:
        value = builder.load(builder.inttoptr(address, self._stored.as_pointer()), align=self.nbytes)
        if self._is_bfloat16:
            wide = builder.shl(builder.zext(value, self._bits), self._constant(16))
            return builder.bitcast(wide, self.computed)
        return builder.fpext(value, self.computed) if self._is_half else value

    def store(self, builder: Any, value: Any, addresses: Any) -> None:
        if self._is_bfloat16:
            value = self._round_to_bfloat16(builder, value)
        elif self._is_half:
            value = builder.fptrunc(value, self._stored)
        for address in addresses:
            builder.store(value, builder.inttoptr(address, self._stored.as_pointer()), align=self.nbytes)

    def combine(self, builder: Any, op: int, a: Any, b: Any) -> Any:
        if op in (MIN, MAX):
            return self._extreme(builder, op, a, b)
        if op == PRODUCT:
            return builder.mul(a, b) if self._is_integer else builder.fmul(a, b)
        return builder.add(a, b) if self._is_integer else builder.fadd(a, b)

    def divide(self, builder: Any, value: Any, count: Any) -> Any:
        """Return `value` divided by the int64 `count`; integers have no mean, and stay as they are."""
        if self._is_integer:
            return value
        scalar = self.computed.element if self._lanes > 1 else self.computed
        divisor = builder.sitofp(count, scalar)
        if self._lanes > 1:
            divisor = builder.insert_element(ir.Constant(self.computed, ir.Undefined), divisor, ir.Constant(_INT32, 0))
            everywhere = ir.Constant(ir.VectorType(_INT32, self._lanes), [0] * self._lanes)
            divisor = builder.shuffle_vector(divisor, ir.Constant(self.computed, ir.Undefined), everywhere)
        return builder.fdiv(value, divisor)

    def _extreme(self, builder: Any, op: int, a: Any, b: Any) -> Any:
        compare = "<" if op == MIN else ">"
        if self._is_integer:
            return builder.select(builder.icmp_signed(compare, a, b), a, b)
        # Floats are ordered as their bits are, once all but the sign of the negative ones are flipped.
        width = self._bits.element.width if self._lanes > 1 else self._bits.width
        largest = self._constant(2 ** (width - 1) - 1)
        p, q = builder.bitcast(a, self._bits), builder.bitcast(b, self._bits)
        x, y = (builder.xor(v, builder.and_(builder.ashr(v, self._constant(width - 1)), largest)) for v in (p, q))
        chosen = builder.select(builder.icmp_signed(compare, x, y), p, q)
        is_nan = builder.fcmp_unordered("uno", a, b)
        return builder.bitcast(builder.select(is_nan, largest, chosen), self.computed)

    def _round_to_bfloat16(self, builder: Any, value: Any) -> Any:
        bits = builder.bitcast(value, self._bits)
        high = builder.lshr(bits, self._constant(16))
        even = builder.and_(high, self._constant(1))
        rounded = builder.lshr(builder.add(bits, builder.add(even, self._constant(0x7FFF))), self._constant(16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, self._constant(0x7FC0), rounded), self._stored)

    def _vector(self, scalar: Any) -> Any:
        return ir.VectorType(scalar, self._lanes) if self._lanes > 1 else scalar

    def _constant(self, value: int) -> Any:
        return ir.Constant(self._bits, [value] * self._lanes if self._lanes > 1 else value)


def _entry(builder: Any, table: Any, index: Any) -> Any:
    """Load entry `index` of a table of addresses."""
    return builder.load(builder.gep(table, [index]))


def _combine_at(builder: Any, kind: _Kind, op: int, tables: Any, divisor: Any, offset: Any) -> None:
    """Emit: combine all sources at `offset` and store to all targets."""
    sources, num_sources, targets, num_targets = tables
    first = kind.load(builder, builder.add(_entry(builder, sources, ir.Constant(_WORD, 0)), offset))
    value = cgutils.alloca_once_value(builder, first)  # type: ignore[no-untyped-call]
    with cgutils.for_range(builder, num_sources, start=ir.Constant(_WORD, 1)) as loop:
        term = kind.load(builder, builder.add(_entry(builder, sources, loop.index), offset))
        builder.store(kind.combine(builder, op, builder.load(value), term), value)
    result = builder.load(value)
    if op == MEAN:
        result = kind.divide(builder, result, divisor)
    with cgutils.for_range(builder, num_targets) as loop:
        kind.store(builder, result, [builder.add(_entry(builder, targets, loop.index), offset)])


def _combine_two_at(builder: Any, kind: _Kind, op: int, addresses: Any, divisor: Any, offset: Any) -> None:
    """Emit the same for two sources and two targets, whose addresses stay in registers."""
    a, b, c, d = (builder.add(address, offset) for address in addresses)
    result = kind.combine(builder, op, kind.load(builder, a), kind.load(builder, b))
    if op == MEAN:
        result = kind.divide(builder, result, divisor)
    kind.store(builder, result, [c, d])


def _emit(builder: Any, dtype: Any, op: int, args: Any) -> None:
    """Emit loops over bytes `start` to `stop`: whole lines first, then single elements."""
    *tables, divisor, start, stop = args
    tables = [builder.inttoptr(t, _WORD.as_pointer()) if i in (0, 2) else t for i, t in enumerate(tables)]
    lines = _Kind(dtype, LINE_NBYTES // (dtype.bitwidth // 8))
    single = _Kind(dtype, 1)
    whole = builder.and_(builder.sub(stop, start), ir.Constant(_WORD, -LINE_NBYTES))
    middle = builder.add(start, whole)
    two = ir.Constant(_WORD, 2)
    both_two = builder.and_(builder.icmp_signed("==", tables[1], two), builder.icmp_signed("==", tables[3], two))
    with builder.if_else(both_two) as (then, otherwise):
        with then:
            zero, one = ir.Constant(_WORD, 0), ir.Constant(_WORD, 1)
            addresses = [_entry(builder, table, i) for table in (tables[0], tables[2]) for i in (zero, one)]
            emit = partial(_combine_two_at, builder, lines, op, addresses, divisor)
            _loop(builder, start, middle, LINE_NBYTES, emit)
        with otherwise:
            _loop(builder, start, middle, LINE_NBYTES, partial(_combine_at, builder, lines, op, tables, divisor))
    _loop(builder, middle, stop, single.nbytes, partial(_combine_at, builder, single, op, tables, divisor))


def _loop(builder: Any, start: Any, stop: Any, step: int, body: Any) -> None:
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(_WORD, step), inc=True) as (offset, _):
        body(offset)


if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _emitted(kind: Any, op: int, *numbers: int) -> None:
        sources, num_sources, targets, num_targets, divisor, start, stop = map(int, numbers)
        terms = [_array(address + start, stop - start, kind) for address in _table(sources, num_sources)]
        with np.errstate(all="ignore"):
            result = _in_numpy(op, terms, divisor)
        for address in _table(targets, num_targets):
            _array(address + start, stop - start, kind)[:] = result

    def _table(address: int, count: int) -> list[int]:
        return list((ctypes.c_int64 * count).from_address(address))

    def _array(address: int, nbytes: int, kind: Any) -> Any:
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        return memory.view(ml_dtypes.bfloat16 if kind is BFLOAT16 else kind)

    def _in_numpy(op: int, terms: list[Any], divisor: int) -> Any:
        half = terms[0].dtype.itemsize == 2
        wide = [term.astype(np.float32) for term in terms] if half else terms
        if op in (MIN, MAX):
            result = _extreme_in_numpy(op, wide)
        else:
            result = wide[0].copy()
            for term in wide[1:]:
                (np.multiply if op == PRODUCT else np.add)(result, term, out=result)
            if op == MEAN and result.dtype.kind == "f":
                result /= divisor
        narrow = result.astype(terms[0].dtype)
        if half:
            narrow[np.isnan(result)] = np.nan
        return narrow

    def _extreme_in_numpy(op: int, terms: list[Any]) -> Any:
        pick = np.minimum if op == MIN else np.maximum
        if terms[0].dtype.kind == "i":
            return pick.reduce(terms)
        integer = np.dtype(f"i{terms[0].dtype.itemsize}")
        largest = np.iinfo(integer).max
        ordered = [bits ^ ((bits >> (8 * integer.itemsize - 1)) & largest) for bits in (t.view(integer) for t in terms)]
        bits = pick.reduce(ordered)
        bits ^= (bits >> (8 * integer.itemsize - 1)) & largest
        bits[np.any([np.isnan(term) for term in terms], axis=0)] = largest
        return bits.view(terms[0].dtype)

else:

    @intrinsic(prefer_literal=True)
    def _emitted(
        _context: Any, kind: Any, op: Any, _s: Any, _n: Any, _t: Any, _m: Any, _d: Any, _start: Any, _stop: Any
    ) -> Any:
        dtype, number = kind.instance_type, op.literal_value

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            _emit(builder, dtype, number, args[2:])
            return context.get_dummy_value()

        return types.void(kind, op, *[types.int64] * 7), generate


@njit(nogil=True, cache=True)
def combine(kind, op, sources, num_sources, targets, num_targets, divisor, start, stop):  # type: ignore[no-untyped-def]
    """Combine `num_sources` vectors and write the result to `num_targets` places, which may be the sources.

    Args:
        kind: one of `KINDS`.
        op: SUM, MEAN (not of integers), MIN, MAX or PRODUCT.
        sources: address of a table of int64: where each vector begins.
        num_sources: one or more.
        targets: the same for where results go.
        num_targets: none or more.
        divisor: of a mean.
        start: the bytes from here, counted from every vector's beginning, a multiple of the element size,
        stop: to here are combined; the others are left alone.
    """
    if op == SUM:
        _emitted(kind, 1, sources, num_sources, targets, num_targets, divisor, start, stop)
    elif op == MEAN:
        _emitted(kind, 2, sources, num_sources, targets, num_targets, divisor, start, stop)
    elif op == MIN:
        _emitted(kind, 3, sources, num_sources, targets, num_targets, divisor, start, stop)
    elif op == MAX:
        _emitted(kind, 4, sources, num_sources, targets, num_targets, divisor, start, stop)
    else:
        _emitted(kind, 5, sources, num_sources, targets, num_targets, divisor, start, stop)


# `kind` for a dtype by its name.
KINDS = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": BFLOAT16,
    "int32": np.int32,
    "int64": np.int64,
}

# What compiled functions take instead of arrays of dtypes that Numba does not know.
CARRIED = {"float16": "uint16", "bfloat16": "uint16"}
