"""What the compiler makes of lanes.py: an LLVM vector of sixteen elements, and one or few instructions a function.

To import this module teaches Numba those functions.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

from hpcvol.kernels import lanes as plain
from hpcvol.kernels.lanes import LANES
from hpcvol.kernels.memory import LINE_NBYTES

_INT1, _INT8, _INT32 = ir.IntType(1), ir.IntType(8), ir.IntType(32)
_FLOATS = {types.uint32: types.float32, types.uint64: types.float64}
_BITS = {types.float32: types.uint32, types.float64: types.uint64}
_ARRAY, _INTEGER, _NUMBER = types.Array, types.Integer, types.Number


class Lanes(types.Type):
    """The type, in compiled code, of sixteen elements of one dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        element = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(element, LANES))  # type: ignore[no-untyped-call]


def _compiled(function: Any, returned: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    """Have the decorated `emit(context, builder, signature, args)` be `function` of arguments of those types.

    Args:
        function: of lanes.py, or an operator.
        returned: the type of what it returns for those of its arguments; None where it is not for them.
        arguments: classes of types.
    """

    @type_callable(function)
    def _typed(_context: Any) -> Any:
        return returned

    def decorate(emit: Any) -> Any:
        lower_builtin(function, *arguments)(emit)  # type: ignore[no-untyped-call]
        return emit

    return decorate


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _INT32(0))
    return _pick(builder, one, [0] * LANES)


def _constant(vector: Any, value: Any) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _pick(builder: Any, vector: Any, places: Any) -> Any:
    chosen = ir.Constant(ir.VectorType(_INT32, len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), chosen)


# Memory.


def _pointer(context: Any, builder: Any, array: Any, args: Any, vector: Any) -> Any:
    data = context.make_array(array)(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())


@_compiled(plain.load, lambda array, index: Lanes(array.dtype), _ARRAY, _INTEGER)  # noqa: ARG005
def _load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    vector = context.get_value_type(signature.return_type)
    return builder.load(_pointer(context, builder, signature.args[0], args, vector), align=1)


@_compiled(plain.store, lambda array, index, lanes: types.none, _ARRAY, _INTEGER, Lanes)  # noqa: ARG005
def _store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    builder.store(args[2], _pointer(context, builder, signature.args[0], args, args[2].type), align=1)
    return context.get_dummy_value()


@_compiled(plain.store_around_cache, lambda array, index, lanes, others: types.none, _ARRAY, _INTEGER, Lanes, Lanes)  # noqa: ARG005
def _store_around_cache(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    # One store: of two, LLVM makes one that narrows as it stores, through the cache, five times as slow (measured).
    line = builder.shuffle_vector(
        args[2], args[3], ir.Constant(ir.VectorType(_INT32, 2 * LANES), list(range(2 * LANES)))
    )
    store = builder.store(line, _pointer(context, builder, signature.args[0], args, line.type), align=LINE_NBYTES)
    store.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))
    return context.get_dummy_value()


def _for_each_width(builder: Any, width: Any, emit: Callable[[int], None]) -> None:
    for known in (1, 2, 4):
        with builder.if_then(builder.icmp_signed("==", width, width.type(known))):
            emit(known)


@_compiled(plain.pack, lambda array, index, levels, width: types.none, _ARRAY, _INTEGER, Lanes, _INTEGER)  # noqa: ARG005
def _pack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    levels = args[2]

    def emit(width: int) -> None:
        if width == 1:
            packed = builder.bitcast(builder.trunc(levels, ir.VectorType(_INT1, LANES)), ir.VectorType(_INT8, 2))
        else:
            packed = ir.Constant(ir.VectorType(_INT8, 2 * width), [0] * 2 * width)
            for place in range(8 // width):
                part = _pick(builder, levels, range(place, LANES, 8 // width))
                part = builder.and_(part, _constant(part.type, (1 << width) - 1))
                packed = builder.or_(packed, builder.shl(part, _constant(part.type, place * width)))
        builder.store(packed, _pointer(context, builder, signature.args[0], args, packed.type), align=1)

    _for_each_width(builder, args[3], emit)
    return context.get_dummy_value()


@_compiled(plain.unpack, lambda array, index, width: Lanes(array.dtype), _ARRAY, _INTEGER, _INTEGER)  # noqa: ARG005
def _unpack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    levels = ir.VectorType(_INT8, LANES)
    result = cgutils.alloca_once(builder, levels)  # type: ignore[no-untyped-call]

    def emit(width: int) -> None:
        packed_type = ir.VectorType(_INT8, 2 * width)
        packed = builder.load(_pointer(context, builder, signature.args[0], args, packed_type), align=1)
        if width == 1:
            value = builder.zext(builder.bitcast(packed, ir.VectorType(_INT1, LANES)), levels)
        else:
            repeated = _pick(builder, packed, [lane * width // 8 for lane in range(LANES)])
            shifts = ir.Constant(levels, [lane * width % 8 for lane in range(LANES)])
            value = builder.and_(builder.lshr(repeated, shifts), _constant(levels, (1 << width) - 1))
        builder.store(value, result)

    _for_each_width(builder, args[2], emit)
    return builder.load(result)


# Operators.


def _same(one: Any, other: Any) -> Any:
    return one if isinstance(one, Lanes) and (one == other or isinstance(other, _NUMBER)) else None


def _compared(one: Any, other: Any) -> Any:
    return Lanes(types.boolean) if _same(one, other) else None


def _operator(function: Any, name: str, float_name: str = "", signed_name: str = "") -> None:
    """Have an operator of lanes be the instruction `name`; of floats, or signed integers, the other one if named."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes, number = signature.args
        one, other = args
        if number != lanes:
            other = _splat(builder, context.cast(builder, other, number, lanes.dtype))
        kind = float_name if isinstance(lanes.dtype, types.Float) else signed_name if lanes.dtype.signed else name
        return getattr(builder, kind or name)(one, other)

    _compiled(function, _same, Lanes, Lanes)(emit)
    lower_builtin(function, Lanes, _NUMBER)(emit)  # type: ignore[no-untyped-call]


_operator(operator.add, "add", "fadd")
_operator(operator.sub, "sub", "fsub")
_operator(operator.mul, "mul", "fmul")
_operator(operator.and_, "and_")
_operator(operator.or_, "or_")
_operator(operator.xor, "xor")
_operator(operator.lshift, "shl")
_operator(operator.rshift, "lshr", signed_name="ashr")


def _less(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    lanes, number = signature.args
    one, other = args
    if number != lanes:
        other = _splat(builder, context.cast(builder, other, number, lanes.dtype))
    if isinstance(lanes.dtype, types.Float):
        return builder.fcmp_ordered("<", one, other)
    return (builder.icmp_signed if lanes.dtype.signed else builder.icmp_unsigned)("<", one, other)


_compiled(operator.lt, _compared, Lanes, Lanes)(_less)
lower_builtin(operator.lt, Lanes, _NUMBER)(_less)  # type: ignore[no-untyped-call]


# Values.


@_compiled(plain.spread, lambda value: Lanes(value), _NUMBER)
def _spread(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _splat(builder, args[0])


@_compiled(plain.count_from, lambda value: Lanes(value), _INTEGER)
def _count_from(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    first = _splat(builder, args[0])
    return builder.add(first, ir.Constant(first.type, list(range(LANES))))


@_compiled(plain.convert, lambda lanes, dtype: Lanes(dtype.instance_type), Lanes, types.NumberClass)  # noqa: ARG005
def _convert(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    old, new = signature.args[0].dtype, signature.return_type.dtype
    return _converted(builder, args[0], old, new, context.get_value_type(signature.return_type))


def _converted(builder: Any, value: Any, old: Any, new: Any, vector: Any) -> Any:
    is_float, becomes_float = isinstance(old, types.Float), isinstance(new, types.Float)
    if value.type == vector:
        return value
    wider = new.bitwidth > old.bitwidth
    if is_float and becomes_float:
        return builder.fpext(value, vector) if wider else builder.fptrunc(value, vector)
    if is_float:
        return builder.fptosi(value, vector)
    if becomes_float:
        return (builder.sitofp if old.signed else builder.uitofp)(value, vector)
    return builder.trunc(value, vector) if not wider else (builder.sext if old.signed else builder.zext)(value, vector)


@_compiled(plain.bits_of, lambda lanes: Lanes(_BITS[lanes.dtype]), Lanes)
def _bits_of(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.bitcast(args[0], context.get_value_type(signature.return_type))


@_compiled(plain.floats_of, lambda lanes: Lanes(_FLOATS[lanes.dtype]), Lanes)
def _floats_of(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.bitcast(args[0], context.get_value_type(signature.return_type))


@_compiled(plain.where, lambda condition, one, other: one, Lanes, Lanes, Lanes)  # noqa: ARG005
def _where(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.select(*args)


@_compiled(plain.magnitude, lambda lanes: lanes, Lanes)
def _magnitude(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _called(builder, "fabs", args[0])


@_compiled(plain.rint, lambda lanes: lanes, Lanes)
def _rint(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _called(builder, "rint", args[0])


def _called(builder: Any, name: str, value: Any) -> Any:
    vector = value.type
    full_name = f"llvm.{name}.v{LANES}{vector.element.intrinsic_name}"
    function_type = ir.FunctionType(vector, [vector])
    function = cgutils.get_or_insert_function(builder.module, function_type, full_name)  # type: ignore[no-untyped-call]
    return builder.call(function, [value])


@_compiled(plain.larger, lambda one, other: one, Lanes, Lanes)  # noqa: ARG005
def _larger(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return _larger_magnitude(builder, signature.return_type.dtype, *args)


@_compiled(plain.greatest, lambda lanes: lanes.dtype, Lanes)
def _greatest(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return _reduced(builder, args[0], partial(_larger_magnitude, builder, signature.return_type))


def _larger_magnitude(builder: Any, dtype: Any, one: Any, other: Any) -> Any:
    # Without their signs floats are ordered as their bits are, NaN above infinity.
    integers = ir.VectorType(ir.IntType(dtype.bitwidth), one.type.count)
    mask = _constant(integers, 2 ** (dtype.bitwidth - 1) - 1)
    a, b = (builder.and_(builder.bitcast(value, integers), mask) for value in (one, other))
    return builder.bitcast(builder.select(builder.icmp_signed("<", a, b), b, a), one.type)


@_compiled(plain.total, lambda lanes: lanes.dtype, Lanes)
def _total(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return _reduced(builder, args[0], builder.fadd)


def _reduced(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    count = LANES
    while count > 1:
        count //= 2
        value = combine(_pick(builder, value, range(count)), _pick(builder, value, range(count, 2 * count)))
    return builder.extract_element(value, _INT32(0))


@_compiled(plain.float32_of, lambda lanes: Lanes(types.float32), Lanes)  # noqa: ARG005
def _float32_of(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    value, single = args[0], context.get_value_type(signature.return_type)
    if value.type == single:
        return value
    integers = ir.VectorType(_INT32, LANES)
    near = builder.fptrunc(value, single)
    back = builder.fpext(near, value.type)
    inexact = builder.fcmp_unordered("!=", back, value)
    too_far = builder.fcmp_ordered(">", _called(builder, "fabs", back), _called(builder, "fabs", value))
    bits = builder.bitcast(near, integers)
    odd = builder.or_(builder.sub(bits, builder.zext(too_far, integers)), _constant(integers, 1))
    return builder.bitcast(builder.select(inexact, odd, bits), single)


@_compiled(plain.float16_bits, lambda lanes: Lanes(types.uint16), Lanes)  # noqa: ARG005
def _float16_bits(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    half = builder.fptrunc(args[0], ir.VectorType(ir.HalfType(), LANES))
    return builder.bitcast(half, context.get_value_type(signature.return_type))


@_compiled(plain.float16_values, lambda lanes: Lanes(types.float32), Lanes)  # noqa: ARG005
def _float16_values(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    half = builder.bitcast(args[0], ir.VectorType(ir.HalfType(), LANES))
    return builder.fpext(half, context.get_value_type(signature.return_type))
