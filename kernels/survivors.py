"""The one pass of selection: elements as large as a threshold leave, in the order of their indices.

With error feedback the same pass adds the residual first, and writes what stays behind back into it.
"""

from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcvol.kernels.magnitude import magnitude

# Elements that are looked at together, a cache line of them, and so the room that has to be left for survivors.
LINE_NBYTES = 64


@njit(nogil=True, cache=True)
def collect(x, residual, start, threshold, indices, values, found):  # type: ignore[no-untyped-def]
    """Append the elements from `start` on whose magnitude is at least `threshold`, while there is room.

    Args:
        x: float32[n] or float64[n], n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`; then what `x` and it add up to, and 0 where that was appended;
            or None.
        start: 0 to n.
        threshold: int64, as of `magnitude`.
        indices: int32[room], written from `found` on, ascending; what lies behind the last survivor is overwritten too.
        values: of the dtype of `x`, [room], likewise.
        found: 0 to room.

    Returns:
        Where it stopped, n or where room ran out, and the new `found`.
    """
    lanes = LINE_NBYTES // x.itemsize
    while start <= x.size - lanes and found <= values.size - lanes:
        found = _collect_line(x, residual, start, threshold, indices, values, found)
        start += lanes
    while start < x.size and found < values.size:
        found = _collect_one(x, residual, start, threshold, indices, values, found)
        start += 1
    return start, found


@njit(nogil=True, cache=True)
def _collect_one(x, residual, i, threshold, indices, values, found):  # type: ignore[no-untyped-def]
    value = x[i]
    if residual is not None:
        value += residual[i]
    survives = magnitude(value) >= threshold
    if residual is not None:
        residual[i] = 0 if survives else value
    indices[found] = i
    values[found] = value
    return found + int(survives)


class _Line:
    """How a line of one dtype is loaded, compared and compressed."""

    def __init__(self, dtype: Any) -> None:
        self.lanes = LINE_NBYTES * 8 // dtype.bitwidth
        scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
        self.nbytes = dtype.bitwidth // 8
        self.floats = ir.VectorType(scalar, self.lanes)
        self.bits = ir.VectorType(ir.IntType(dtype.bitwidth), self.lanes)
        self.indices = ir.VectorType(ir.IntType(32), self.lanes)
        self.mask = ir.VectorType(ir.IntType(1), self.lanes)

    def place(self, builder: Any, array: Any, index: Any, vector: Any) -> Any:
        """Return a pointer to the vector that begins at element `index` of an array."""
        return builder.bitcast(builder.gep(array.data, [index]), vector.as_pointer())

    def all_equal(self, builder: Any, scalar: Any, vector: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return builder.shuffle_vector(first, undefined, everywhere)

    def survive(self, builder: Any, value: Any, threshold: Any) -> Any:
        """Compare magnitudes, in the width of this dtype: those above the threshold less one, which fits there."""
        largest = 2 ** (self.nbytes * 8 - 1) - 1
        below, limit = builder.sub(threshold, ir.IntType(64)(1)), ir.IntType(64)(largest)
        below = builder.select(builder.icmp_signed("<", below, limit), below, limit)
        if self.nbytes == 4:
            below = builder.trunc(below, ir.IntType(32))
        bits = builder.and_(builder.bitcast(value, self.bits), ir.Constant(self.bits, [largest] * self.lanes))
        return builder.icmp_signed(">", bits, self.all_equal(builder, below, self.bits))


def _append(builder: Any, line: _Line, survive: Any, pairs: Any, has_compress: bool) -> None:
    """Write the surviving lanes of each vector next to each other at its place."""
    if has_compress:  # to a register and all of it stored: no branch to be guessed, and compressing stores can be slow
        for vector, place in pairs:
            name = f"llvm.x86.avx512.mask.compress.{_suffix(vector.type)}"
            kind = ir.FunctionType(vector.type, [vector.type, vector.type, line.mask])
            compress = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            builder.store(builder.call(compress, [vector, vector, survive]), place, align=4)
        return
    with builder.if_then(builder.icmp_unsigned("!=", builder.bitcast(survive, ir.IntType(line.lanes)), 0)):
        for vector, place in pairs:
            name = f"llvm.masked.compressstore.{_suffix(vector.type)}"
            pointer = vector.type.element.as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [vector.type, pointer, line.mask])
            store = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            builder.call(store, [vector, builder.bitcast(place, pointer), survive])


def _suffix(vector: Any) -> str:
    scalar = {"float": "f32", "double": "f64", "i32": "i32"}[str(vector.element)]
    return f"v{vector.count}{scalar}"


if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _collect_line(x: Any, residual: Any, start: int, threshold: int, indices: Any, values: Any, found: int) -> int:
        for i in range(start, start + LINE_NBYTES // x.itemsize):
            found = _collect_one(x, residual, i, threshold, indices, values, found)
        return found

else:

    @intrinsic
    def _collect_line(
        _context: Any, x: Any, residual: Any, start: Any, threshold: Any, indices: Any, values: Any, found: Any
    ) -> Any:
        """Do with a line what `_collect_one` does with an element."""
        line = _Line(x.dtype)
        kinds = (x, residual, start, threshold, indices, values, found)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, _, start, threshold, _, _, found = args
            x, residual, _, _, indices, values, _ = (
                context.make_array(kind)(context, builder, arg) if isinstance(kind, types.Array) else None
                for kind, arg in zip(signature.args, args, strict=True)
            )
            value = builder.load(line.place(builder, x, start, line.floats), align=line.nbytes)
            if residual is not None:
                place = line.place(builder, residual, start, line.floats)
                value = builder.fadd(value, builder.load(place, align=line.nbytes))
            survive = line.survive(builder, value, threshold)
            if residual is not None:
                zeros = ir.Constant(line.floats, [0.0] * line.lanes)
                builder.store(builder.select(survive, zeros, value), place, align=line.nbytes)
            lanes = ir.Constant(line.indices, list(range(line.lanes)))
            numbers = builder.add(line.all_equal(builder, builder.trunc(start, ir.IntType(32)), line.indices), lanes)
            pairs = [
                (value, line.place(builder, values, found, line.floats)),
                (numbers, line.place(builder, indices, found, line.indices)),
            ]
            _append(builder, line, survive, pairs, "+avx512vl" in context.codegen().magic_tuple()[2])
            count = builder.ctpop(builder.bitcast(survive, ir.IntType(line.lanes)))
            return builder.add(found, builder.zext(count, ir.IntType(64)))

        return types.int64(*kinds), generate
