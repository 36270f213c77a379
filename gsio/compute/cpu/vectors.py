"""What functions that Numba compiles need of the machine: vectors, pointers, the float mode, and a meeting of threads.

A `Vector` holds as many numbers as a vector instruction takes. A loop over vectors is emitted as it is written, so that
its speed does not depend on what a compiler makes of a loop over cells, and neither does the time to compile it.
"""

# mypy: allow-untyped-calls
import platform
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

X86 = platform.machine() in ("x86_64", "AMD64")
FEATURES = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
if FEATURES is None:
    FEATURES = binding.get_host_cpu_features().flatten()
    if X86:  # LLVM would turn vectors of 512 bits, which are faster here, into two of 256 bits.
        FEATURES += ",-prefer-256-bit"
        numba.config.CPU_FEATURES = FEATURES  # type: ignore[attr-defined]
WIDTHS = {"+avx512f": 64, "+avx": 32}  # bytes of a vector
VECTOR_BYTES = next((width for feature, width in WIDTHS.items() if feature in FEATURES.split(",")), 16)
if (numba.config.CPU_NAME or binding.get_host_cpu_name()) == "znver4":  # type: ignore[attr-defined]
    VECTOR_BYTES = min(VECTOR_BYTES, 32)  # This processor computes 512 bits in two halves.
FLUSH = np.uint32(0x1F80 | 0x8040)  # the default mode, and both bits for subnormal numbers
ARRIVED, MEETING = 0, 8  # places in the numbers of a meeting, each in a cache line of its own
MEETING_NUMBERS = 16
SPINS = 2000  # looks at the number of a meeting, before a thread that waits sleeps
NAP = np.uint32(20)  # microseconds
I32 = ir.IntType(32)


COMPILE: Any = numba.njit


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled functions call, and Python does not."""
    return COMPILE(no_cpython_wrapper=True)(function)


class Vector(types.Type):
    """The type of `lanes` numbers of an element type."""

    def __init__(self, element):  # type: ignore[no-untyped-def]
        self.element = element
        self.lanes = VECTOR_BYTES * 8 // element.bitwidth
        super().__init__(f"Vector({element}, {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):  # type: ignore[no-untyped-def]
        element = manager.lookup(vector.element).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


@intrinsic
def pointer(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Return the pointer to ``array[index]``; ``pointer[j]`` is the number that lies `j` numbers behind."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, index), generate


@intrinsic
def ahead(typing_context, place, index):  # type: ignore[no-untyped-def]
    """Return the pointer that lies `index` numbers behind another one."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.gep(arguments[0], [arguments[1]])

    return place(place, index), generate


@intrinsic
def lanes_of(typing_context, place):  # type: ignore[no-untyped-def]
    """Return the number of lanes of a vector of the numbers at a pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return ir.IntType(64)(Vector(place.dtype).lanes)

    return types.int64(place), generate


@intrinsic
def zero_of(typing_context, place):  # type: ignore[no-untyped-def]
    """Return 0 as a number of the kind that is at a pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return context.get_constant(place.dtype, 0)

    return place.dtype(place), generate


@intrinsic
def load(typing_context, place, index):  # type: ignore[no-untyped-def]
    """Return the vector that begins `index` numbers behind a pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(signature.return_type).as_pointer()
        start = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), vector)
        return builder.load(start, align=place.dtype.bitwidth // 8)

    return Vector(place.dtype)(place, index), generate


@intrinsic
def store(typing_context, place, index, value):  # type: ignore[no-untyped-def]
    """Put a vector to the place that begins `index` numbers behind a pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        start = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), arguments[2].type.as_pointer())
        builder.store(arguments[2], start, align=place.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(place, index, value), generate


@intrinsic
def splat(typing_context, number):  # type: ignore[no-untyped-def]
    """Return a vector whose numbers are all `number`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(signature.return_type)
        one = builder.insert_element(vector(ir.Undefined), arguments[0], I32(0))
        return builder.shuffle_vector(one, vector(ir.Undefined), ir.VectorType(I32, vector.count)([0] * vector.count))

    return Vector(number)(number), generate


def _slide(offset: Callable[[int], int]) -> Any:
    @intrinsic
    def slide(typing_context, before, after):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            first = offset(before.lanes)
            lanes = ir.VectorType(I32, before.lanes)(list(range(first, first + before.lanes)))
            return builder.shuffle_vector(*arguments, lanes)

        return before(before, after), generate

    return slide


one_left = _slide(lambda lanes: lanes - 1)  # of two adjacent vectors: the vector one number before the second one
one_right = _slide(lambda lanes: 1)  # the vector one number behind the first one


@intrinsic
def transpose(typing_context, to, to_step, cells, step, count):  # type: ignore[no-untyped-def]
    """Load as many vectors as a vector has lanes, `step` numbers apart, and store the first `count` of their transpose.

    Stored vector i has number i of each loaded vector, and begins ``i * to_step`` numbers behind `to`. In each round,
    vectors whose numbers differ in one bit exchange the lanes whose numbers differ in the same bit.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        to, to_step, cells, step, count = arguments
        lanes, align = Vector(signature.args[2].dtype).lanes, signature.args[2].dtype.bitwidth // 8
        vector = context.get_value_type(Vector(signature.args[2].dtype)).as_pointer()

        def place(start, step, number):  # type: ignore[no-untyped-def]
            return builder.bitcast(builder.gep(start, [builder.mul(step, step.type(number))]), vector)

        vectors = [builder.load(place(cells, step, number), align=align) for number in range(lanes)]
        bit = lanes // 2
        while bit:
            even = ir.VectorType(I32, lanes)([lane if not lane & bit else lanes + lane - bit for lane in range(lanes)])
            odd = ir.VectorType(I32, lanes)([lane + bit if not lane & bit else lanes + lane for lane in range(lanes)])
            for i in (number for number in range(lanes) if not number & bit):
                pair = vectors[i], vectors[i + bit]
                vectors[i], vectors[i + bit] = (builder.shuffle_vector(*pair, order) for order in (even, odd))
            bit //= 2
        for number, value in enumerate(vectors):
            with builder.if_then(builder.icmp_signed(">", count, count.type(number))):
                builder.store(value, place(to, to_step, number), align=align)
        return context.get_dummy_value()

    return types.void(to, to_step, cells, step, count), generate


def _operation(name: str) -> Any:
    @intrinsic
    def operate(typing_context, a, b):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return getattr(builder, name)(*arguments)

        return a(a, b), generate

    return operate


add, subtract, multiply = map(_operation, ("fadd", "fsub", "fmul"))


@intrinsic
def negative(typing_context, a):  # type: ignore[no-untyped-def]
    """Return -a."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fneg(arguments[0])

    return a(a), generate


@intrinsic
def multiply_add(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """Return a b + c, rounded once if the machine can. The compiler's own choice could differ from place to place."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = arguments[0].type
        name = f"llvm.fmuladd.v{a.lanes}f{a.element.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return builder.call(function, arguments)

    return a(a, a, a), generate


@intrinsic
def prefetch(typing_context, place, index):  # type: ignore[no-untyped-def]
    """Start to fetch the cache line that lies `index` numbers behind a pointer."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [data, I32, I32, I32])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [data], function)
        start = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), data)
        builder.call(instruction, [start, I32(0), I32(3), I32(1)])  # for reading, in the nearest cache, data
        return context.get_dummy_value()

    return types.void(place, index), generate


@intrinsic
def set_float_mode(typing_context, mode):  # type: ignore[no-untyped-def]
    """Set the calling thread's MXCSR register, if the machine has one, and return its previous value.

    With FLUSH, subnormal numbers count as zero. A step with subnormal numbers takes up to sixty times as long.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if not X86:
            return arguments[0]
        data = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [data])
        old, new = builder.alloca(I32), builder.alloca(I32)
        builder.store(arguments[0], new)
        for name, place in (("stmxcsr", old), ("ldmxcsr", new)):
            instruction = builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), function)
            builder.call(instruction, [builder.bitcast(place, data)])
        return builder.load(old)

    return types.uint32(types.uint32), generate


@intrinsic
def _read(typing_context, numbers, index):  # type: ignore[no-untyped-def]
    """Return ``numbers[index]`` as the last thread has left it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return numbers.dtype(numbers, index), generate


@intrinsic
def _increase(typing_context, numbers, index, amount):  # type: ignore[no-untyped-def]
    """Add to ``numbers[index]``, and return its previous value, in one step of all threads."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return numbers.dtype(numbers, index, numbers.dtype), generate


@intrinsic
def _pause(typing_context):  # type: ignore[no-untyped-def]
    """Tell the core that the thread spins."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if X86:
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), function), [])
        return context.get_dummy_value()

    return types.void(), generate


_sleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@inner
def meet(numbers, threads):  # type: ignore[no-untyped-def]
    """Return when all `threads` have called this function with the same `numbers`, int64 [MEETING_NUMBERS].

    A thread that waits spins for some microseconds, and sleeps after that, so that it takes no core from the others.
    The function returns at once after `MEETING` was set to a negative number: one of the threads does not come.
    """
    meeting = _read(numbers, MEETING)
    if threads == 1 or meeting < 0:
        return
    if _increase(numbers, ARRIVED, 1) == threads - 1:
        numbers[ARRIVED] = 0
        _increase(numbers, MEETING, 1)
        return
    looks = 0
    while _read(numbers, MEETING) == meeting:
        looks += 1
        if looks < SPINS:
            _pause()
        else:
            _sleep(NAP)
