"""Vectors of 16 float32 as a Numba type, and the operations that the kernels are written in.

Each function here is one or a few LLVM instructions over `<16 x float>`; LLVM splits them into what the CPU
has (two AVX2 registers, one AVX-512 register). Loads and stores take a flat array and an element index and
check no bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16

FLOAT, HALF = ir.FloatType(), ir.HalfType()
INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOATS = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(INT32, LANES)
SHORTS = ir.VectorType(INT16, LANES)


class FloatVector(types.Type):
    """16 float32 values."""

    def __init__(self) -> None:
        super().__init__("float32x16")


float_vector = FloatVector()


@register_model(FloatVector)
class _FloatVectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, FLOATS)


def data_pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The address of an array's first element."""
    return context.make_array(array_type)(context, builder, array).data


def element_pointer(context: Any, builder: Any, signature: Any, arguments: Any, pointee: Any) -> Any:
    """The address of element `arguments[1]` of array `arguments[0]`, as a pointer to `pointee`."""
    data = data_pointer(context, builder, signature.args[0], arguments[0])
    index = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def load_unaligned(builder: Any, pointer: Any) -> Any:
    """A load that assumes no alignment beyond a byte."""
    value = builder.load(pointer)
    value.align = 1
    return value


def store_unaligned(builder: Any, value: Any, pointer: Any) -> None:
    """A store that assumes no alignment beyond a byte."""
    builder.store(value, pointer).align = 1


def splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """`scalar` in every lane of a vector type."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    zeros = ir.Constant(ir.VectorType(INT32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, zeros)


def constant(vector: Any, value: float) -> Any:
    """A vector constant with the same value in each lane."""
    return ir.Constant(vector, [value] * vector.count)


def call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an LLVM intrinsic function by name."""
    type_ = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, type_, name), arguments)


def fused_multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return call(builder, f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])


def bfloat16_to_float(builder: Any, bits: Any) -> Any:
    """A vector of bfloat16 bit patterns → float32."""
    lanes = bits.type.count
    wide = builder.zext(bits, ir.VectorType(INT32, lanes))
    shifted = builder.shl(wide, constant(ir.VectorType(INT32, lanes), 16))
    return builder.bitcast(shifted, ir.VectorType(FLOAT, lanes))


def _float_to_bfloat16(builder: Any, value: Any) -> Any:
    """Round to nearest, ties to even. NaN keeps its sign and becomes quiet. One number or a vector."""
    lanes = getattr(value.type, "count", 0)
    ints, shorts = (INTS, SHORTS) if lanes else (INT32, INT16)

    def number(bits: int) -> Any:
        return constant(INTS, bits) if lanes else ir.Constant(INT32, bits)

    bits = builder.bitcast(value, ints)
    odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.add(bits, builder.add(number(0x7FFF), odd))
    is_nan = builder.fcmp_unordered("uno", value, value)
    quiet = builder.or_(bits, number(0x00400000))
    return builder.trunc(builder.lshr(builder.select(is_nan, quiet, rounded), number(16)), shorts)


@intrinsic
def address(_typing: Any, array: Any, index: Any) -> Any:
    """The address of element `index` of a flat array, as an integer. The caller keeps the array alive."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = element_pointer(context, builder, signature, arguments, INT8)
        return builder.ptrtoint(pointer, INT64)

    return types.intp(array, index), generate


@intrinsic
def prefetch_line(_typing: Any, place: Any) -> Any:
    """Ask for the cache line of an address, to be read soon."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], INT8.as_pointer())
        type_ = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, type_, "llvm.prefetch.p0")
        read, keep_in_l2, data = (ir.Constant(INT32, value) for value in (0, 2, 1))
        builder.call(function, [pointer, read, keep_in_l2, data])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def load(_typing: Any, array: Any, index: Any) -> Any:
    """16 numbers from `index` on, as float32. The array holds float32, or bfloat16 bits as uint16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0].dtype == types.uint16:
            bits = load_unaligned(builder, element_pointer(context, builder, signature, arguments, SHORTS))
            return bfloat16_to_float(builder, bits)
        return load_unaligned(builder, element_pointer(context, builder, signature, arguments, FLOATS))

    return float_vector(array, index), generate


@intrinsic
def store(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write 16 numbers from `index` on; into an array of uint16 as bfloat16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = arguments[2]
        if signature.args[0].dtype == types.uint16:
            vector = _float_to_bfloat16(builder, vector)
        pointer = element_pointer(context, builder, signature, arguments, vector.type)
        store_unaligned(builder, vector, pointer)
        return context.get_dummy_value()

    return types.void(array, index, value), generate


@intrinsic
def load_one(_typing: Any, array: Any, index: Any) -> Any:
    """Element `index` as float32. The array holds float32, or bfloat16 bits as uint16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0].dtype == types.uint16:
            bits = builder.load(element_pointer(context, builder, signature, arguments, INT16))
            wide = builder.shl(builder.zext(bits, INT32), ir.Constant(INT32, 16))
            return builder.bitcast(wide, FLOAT)
        return builder.load(element_pointer(context, builder, signature, arguments, FLOAT))

    return types.float32(array, index), generate


@intrinsic
def store_one(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write one number; into an array of uint16 as bfloat16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[2], signature.args[2], types.float32)
        if signature.args[0].dtype == types.uint16:
            number = _float_to_bfloat16(builder, number)
        builder.store(number, element_pointer(context, builder, signature, arguments, number.type))
        return context.get_dummy_value()

    return types.void(array, index, value), generate


@intrinsic
def store_rounded_int16(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write 16 numbers, each within ±32767, rounded to the nearest int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rounded = call(builder, "llvm.rint.v16f32", FLOATS, [arguments[2]])
        shorts = builder.trunc(builder.fptosi(rounded, INTS), SHORTS)
        pointer = element_pointer(context, builder, signature, arguments, SHORTS)
        store_unaligned(builder, shorts, pointer)
        return context.get_dummy_value()

    return types.void(array, index, value), generate


@intrinsic
def broadcast(_typing: Any, scalar: Any) -> Any:
    """A number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat(builder, context.cast(builder, arguments[0], signature.args[0], types.float32), FLOATS)

    return float_vector(scalar), generate


def _operation(arity: int, result: Any, emit: Callable[..., Any]) -> Any:
    """An intrinsic over `arity` vectors; `emit(builder, *vectors)` writes its instructions."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return emit(builder, *arguments)

    if arity == 1:

        def unary(_typing: Any, a: Any) -> Any:
            return result(a), generate

        return intrinsic(unary)
    if arity == 2:

        def binary(_typing: Any, a: Any, b: Any) -> Any:
            return result(a, b), generate

        return intrinsic(binary)

    def ternary(_typing: Any, a: Any, b: Any, c: Any) -> Any:
        return result(a, b, c), generate

    return intrinsic(ternary)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    """`b` where either is NaN: what one instruction does."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _minimum(builder: Any, a: Any, b: Any) -> Any:
    """`b` where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _reduce(builder: Any, value: Any, combine: Callable[..., Any]) -> Any:
    undefined = ir.Constant(FLOATS, ir.Undefined)
    for distance in (8, 4, 2, 1):
        order = ir.Constant(INTS, [(lane + distance) % LANES for lane in range(LANES)])
        value = combine(builder, value, builder.shuffle_vector(value, undefined, order))
    return builder.extract_element(value, ir.Constant(INT32, 0))


def _exp(builder: Any, x: Any) -> Any:
    """e^x to about 1e-7 relative (Cephes' expf: range reduction by ln 2 in two parts, degree-5 polynomial).

    Arguments under -87 give 0, those over 88 what 88 gives, NaN gives NaN.
    """
    vanishes = builder.fcmp_ordered("<", x, constant(FLOATS, -87.0))
    x = _minimum(builder, constant(FLOATS, 88.0), _maximum(builder, constant(FLOATS, -87.0), x))
    n = call(builder, "llvm.rint.v16f32", FLOATS, [builder.fmul(x, constant(FLOATS, 1.4426950408889634))])
    r = fused_multiply_add(builder, n, constant(FLOATS, -0.693359375), x)
    r = fused_multiply_add(builder, n, constant(FLOATS, 2.12194440e-4), r)
    p = constant(FLOATS, 1.9875691500e-4)
    for coefficient in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        p = fused_multiply_add(builder, p, r, constant(FLOATS, coefficient))
    p = fused_multiply_add(builder, p, builder.fmul(r, r), builder.fadd(r, constant(FLOATS, 1.0)))
    exponent = builder.shl(builder.add(builder.fptosi(n, INTS), constant(INTS, 127)), constant(INTS, 23))
    value = builder.fmul(p, builder.bitcast(exponent, FLOATS))
    return builder.select(vanishes, constant(FLOATS, 0.0), value)


add = _operation(2, float_vector, lambda builder, a, b: builder.fadd(a, b))
subtract = _operation(2, float_vector, lambda builder, a, b: builder.fsub(a, b))
multiply = _operation(2, float_vector, lambda builder, a, b: builder.fmul(a, b))
divide = _operation(2, float_vector, lambda builder, a, b: builder.fdiv(a, b))
multiply_add = _operation(3, float_vector, fused_multiply_add)
maximum = _operation(2, float_vector, _maximum)
minimum = _operation(2, float_vector, _minimum)
absolute = _operation(1, float_vector, lambda builder, a: call(builder, "llvm.fabs.v16f32", FLOATS, [a]))
rint = _operation(1, float_vector, lambda builder, a: call(builder, "llvm.rint.v16f32", FLOATS, [a]))
exp = _operation(1, float_vector, _exp)
sum_lanes = _operation(1, types.float32, lambda builder, a: _reduce(builder, a, lambda b, x, y: b.fadd(x, y)))
max_lanes = _operation(1, types.float32, lambda builder, a: _reduce(builder, a, _maximum))


@intrinsic
def half_to_float(_typing: Any, array: Any, index: Any) -> Any:
    """The float16 whose first byte is element `index` of an array of bytes, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = element_pointer(context, builder, signature, arguments, HALF)
        return builder.fpext(load_unaligned(builder, pointer), FLOAT)

    return types.float32(array, index), generate
