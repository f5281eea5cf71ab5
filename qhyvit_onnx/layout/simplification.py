# SPDX-License-Identifier: Apache-2.0
"""One map, written with as few digits as possible: then what looks equal is equal."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from qhyvit_onnx.layout.digits import Affine, Digit, number_of, product
from qhyvit_onnx.layout.form import Blend, Bound, Form, Lookup
from qhyvit_onnx.symbolic.dims import Dim, quotient, settled


def simplified(form: Form) -> Form:
    """Return the same map with digits joined where they only ever act as one number."""
    form = _joined(_parted(_joined(form)))
    while (loose := _unblended(form)) is not None:
        form = _joined(_parted(_joined(loose)))
    kept = tuple(bound for bound in form.bounds if not bound.holds)
    return form if len(kept) == len(form.bounds) else replace(form, bounds=kept)


def _joined(form: Form) -> Form:
    """Join neighbours on one axis that every sum reads as one number."""
    for index, axis in enumerate(form.axes):
        joined: list[Digit] = []
        for digit in axis:
            fast = digit
            while joined and _one_number(form, joined[-1], fast):
                slow = joined.pop()
                whole = Digit(settled(slow.size * fast.size))
                form = form.rewritten(partial(_rejoin, slow, fast, whole))
                fast = whole
            joined.append(fast)
        form = form.with_axis(index, tuple(joined))
    return form


def _one_number(form: Form, slow: Digit, fast: Digit) -> bool:
    pairs = ((v.strides.get(slow, 0), v.strides.get(fast, 0)) for v in form.sums())
    return all(first == settled(second * fast.size) for first, second in pairs)


def _rejoin(slow: Digit, fast: Digit, whole: Digit, value: Affine) -> Affine:
    if fast not in value.strides:
        return value
    strides = {d: s for d, s in value.strides.items() if d is not slow and d is not fast}
    return Affine(value.offset, strides | {whole: value.strides[fast]})


def _parted(form: Form) -> Form:
    """Cut blends in two where the number falls apart; a blend with one part is just that number."""
    pieces = [piece for item in form.bound_digits for piece in _pieces(item)]
    form = replace(form, bound_digits=tuple(pieces))
    for item in pieces:
        if isinstance(item, Blend) and len(item.parts) == 1:
            rest = tuple(other for other in form.bound_digits if other.parts is not item.parts)
            value = next(other.value for other in form.bound_digits if other.parts is item.parts)
            form = replace(form, bound_digits=rest).substituted(item.parts[0], value)
    return form


def _pieces(item: Blend | Lookup) -> Iterator[Blend | Lookup]:
    for at in range(1, len(item.parts)):
        size = product(item.parts[at:])
        cut = _cut(item.value, size)
        if cut is not None:
            yield Blend(cut[0], item.parts[:at])
            yield from _pieces(Blend(cut[1], item.parts[at:]))
            return
    yield item


def _cut(value: Affine, size: Dim) -> tuple[Affine, Affine] | None:
    """Return (slow, fast) with value = size * slow + fast and 0 <= fast < size, if that is sure."""
    shares = {d: quotient(stride, size) for d, stride in value.strides.items()}
    slow = Affine(0, {d: share for d, share in shares.items() if share is not None})
    fast = Affine(value.offset, {d: value.strides[d] for d, s in shares.items() if s is None})
    return (slow, fast) if Bound(fast, size).holds else None


def _unblended(form: Form) -> Form | None:
    """Return the form with one blend undone whose number is a free digit again, if there is one."""
    for item in form.bound_digits:
        digit = _exact(item)
        if digit is None:
            continue
        where = [(a, axis.index(digit)) for a, axis in enumerate(form.axes) if digit in axis]
        if not where:
            continue
        axis, at = where[0]
        digits = form.axes[axis]
        rest = tuple(other for other in form.bound_digits if other is not item)
        free = form.with_axis(axis, (*digits[:at], *item.parts, *digits[at + 1 :]))
        return replace(free, bound_digits=rest).substituted(digit, number_of(item.parts))
    return None


def _exact(item: Blend | Lookup) -> Digit | None:
    """Return the digit that the parts of a blend write, no more and no less."""
    if isinstance(item, Lookup) or item.value.offset != 0 or len(item.value.strides) != 1:
        return None
    ((digit, stride),) = item.value.strides.items()
    return digit if stride == 1 and digit.size == product(item.parts) else None
