# SPDX-License-Identifier: Apache-2.0
"""Keep a range of an axis: on digit borders the digits survive, elsewhere they are blended."""

from qhyvit_onnx.layout.digits import Affine, Digit, places
from qhyvit_onnx.layout.form import Axis, Form, axis_of
from qhyvit_onnx.layout.simplification import simplified
from qhyvit_onnx.symbolic.dims import Dim, is_number, quotient


def narrow(form: Form, axis: int, start: Dim, step: int, size: Dim) -> Form:
    """Return ``form`` with the indices start, start + step, ... of one axis kept, ``size`` of them.

    Digits are put aside from the fastest on as long as the range takes all of their values, or one.
    """
    search = _Search(form, form.axes[axis], start, step, size)
    search.run()
    new = axis_of(search.size)
    value = Affine(search.start, dict.fromkeys(new, search.step))
    found = search.form.with_axis(axis, search.digits).rebased(axis, value, new)
    return simplified(found.with_axis(axis, (*new, *search.kept)))


class _Search:
    """A range on the number that ``digits`` write; ``kept`` are the fast digits taken whole."""

    def __init__(self, form: Form, digits: Axis, start: Dim, step: int, size: Dim) -> None:
        self.form, self.digits, self.kept = form, digits, ()  # type: Form, Axis, Axis
        self.start, self.step, self.size = start, step, size

    def run(self) -> None:
        while len(self.digits) > 1:
            if not (self._keep_fastest() or self._fix_fastest() or self._fix_all_but_fastest()):
                return

    def _keep_fastest(self) -> bool:
        """Keep the fastest digit whole if the range begins and ends on its borders."""
        fastest = self.digits[-1]
        start, size = _quotient(self.start, fastest.size), quotient(self.size, fastest.size)
        if self.step != 1 or start is None or size is None:
            return False
        self.kept = (fastest, *self.kept)
        self.digits, self.start, self.size = self.digits[:-1], start, size
        return True

    def _fix_fastest(self) -> bool:
        """Fix the fastest digit if the range only ever steps over all of its values."""
        fastest = self.digits[-1]
        if not _numbers(self.start, fastest.size) or self.step % fastest.size:
            return False
        self._fix(fastest, self.start % fastest.size)
        self.digits = self.digits[:-1]
        self.start, self.step = self.start // fastest.size, self.step // fastest.size
        return True

    def _fix_all_but_fastest(self) -> bool:
        """Fix every slower digit if the range lies within one run of the fastest."""
        *slower, fastest = self.digits
        if not _numbers(self.start, self.size, *(digit.size for digit in self.digits)):
            return False
        row, last = self.start // fastest.size, self.start + self.step * (self.size - 1)
        if row != last // fastest.size:
            return False
        for digit, stride in places(slower):
            self._fix(digit, row // stride % digit.size)
        self.digits, self.start = (fastest,), self.start % fastest.size
        return True

    def _fix(self, digit: Digit, at: int) -> None:
        self.form = self.form.substituted(digit, Affine(at))


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """Return a / b where that is surely a whole number from zero on."""
    return 0 if is_number(a) and a == 0 else quotient(a, b)


def _numbers(*values: Dim) -> bool:
    return all(map(is_number, values))
