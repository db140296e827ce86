"""FLOPs of the matrix products of a compiled program."""

import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from fsa.cost_model.hlo_text import Computation, Instruction, Program


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a Pallas kernel for TPU, whose products are hidden."""
    return 'custom_call_target="tpu_custom_call"' in instruction.attributes


def flops(
    program: Program, computation: Computation, instruction: Instruction
) -> float:
    """Returns the FLOPs of an instruction and of those that are fused into it.

    Args:
      program: the program.
      computation: the computation that contains the instruction.
      instruction: an instruction of any kind.
    """
    match instruction.opcode:
        case "dot":
            return _dot_flops(computation, instruction)
        case "convolution":
            return _convolution_flops(computation, instruction)
        case "fusion":
            called = program.computations[instruction.called("calls")]
            return sum(flops(program, called, i) for i in called.instructions.values())
    return 0.0


def _dot_flops(computation: Computation, dot: Instruction) -> float:
    left = computation.instructions[dot.operands[0]].shapes[0]
    contracted = dot.integers("lhs_contracting_dims")
    return 2.0 * dot.shapes[0].size * math.prod(left.dims[i] for i in contracted)


def _convolution_flops(computation: Computation, convolution: Instruction) -> float:
    """Returns the FLOPs of a convolution; on TPU every matrix product is one.

    Counted as in XLA's HloCostAnalysis::HandleConvolution: padding and the holes of a
    dilation cost nothing, so batch axes that are written as a window count once.
    """
    attributes = convolution.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    left, right = (
        computation.instructions[name].shapes[0].dims
        for name in convolution.operands[:2]
    )
    sides = zip(labels, (left, right, convolution.shapes[0].dims), strict=True)
    left, right, out = (dict(zip(names, dims, strict=True)) for names, dims in sides)
    batches = re.search(r"batch_group_count=(\d+)", attributes)
    pairs = left["b"] // (int(batches[1]) if batches else 1) * right["i"] * right["o"]
    window = _window(attributes)
    spatial = (axis for axis in left if axis.isdigit())
    for axis, each in zip(sorted(spatial), window, strict=True):
        pairs *= _valid_positions(left[axis], right[axis], out[axis], each)
    return 2.0 * pairs


def _window(attributes: str) -> Iterator[tuple[int, int, int, int]]:
    """Returns (stride, padding before, input dilation, window dilation) per axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(f.split("=") for f in found[1].split()) if found else {}
    rank = len(fields["size"].split("x")) if fields else 0

    def values_of(name, default):
        values = fields[name].split("x") if name in fields else [default] * rank
        return [int(value.split("_")[0]) for value in values]

    return zip(
        values_of("stride", "1"),
        values_of("pad", "0_0"),
        values_of("lhs_dilate", "1"),
        values_of("rhs_dilate", "1"),
        strict=True,
    )


@functools.cache
def _valid_positions(input_size, window_size, output_size, window) -> int:
    """Counts the (output, window) positions that meet an element of the input."""
    stride, padding, dilation, window_dilation = window
    at = stride * np.arange(output_size)[:, None] - padding
    at = at + window_dilation * np.arange(window_size)
    inside = (at >= 0) & (at <= (input_size - 1) * dilation)
    return int((inside & (at % dilation == 0)).sum())
