"""Operators made of operators, with bounds, exactness and precision that follow from those of the parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from recon.operators.linear import LinearOperator, Shape, real_size

#: the shape of images or data, None for any, and whether they are complex
Side = tuple[Shape | None, bool]


def sides(operator: LinearOperator, images: Shape | None = None) -> tuple[Side, Side]:
    """Domain and range of an operator for images of this shape, where it takes any."""
    domain, range_ = operator.domain_shape, operator.range_shape
    if domain is None:
        domain, range_ = images, images if range_ is None else range_
    return (domain, operator.complex_domain), (range_, operator.complex_range)


def described(*operators: LinearOperator) -> str:
    """Their classes and shapes, for messages."""

    def side(shape: Shape | None, is_complex: bool) -> str:
        return ("complex " if is_complex else "") + ("any shape" if shape is None else str(shape))

    return " and ".join(
        f"{type(a).__name__} from {side(a.domain_shape, a.complex_domain)} to {side(a.range_shape, a.complex_range)}"
        for a in operators
    )


class Combined(LinearOperator):
    """An operator made of others: as precise as the worst of them, proven and exact if all are.

    Parameters
    ----------
    parts : sequence of LinearOperator
        What it is made of.
    domain, range_ : Side
        Of the whole.
    norm_bound, lower_bound : float
        Of the whole.
    """

    parts: Sequence[LinearOperator]

    def __init__(
        self, parts: Sequence[LinearOperator], domain: Side, range_: Side, norm_bound: float, lower_bound: float
    ) -> None:
        certified = all(a.norm_bound_certified for a in parts)
        super().__init__(domain[0], range_[0], norm_bound, lower_bound, certified)
        self.complex_domain, self.complex_range = domain[1], range_[1]
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment]
        self.adjoint_exact = all(a.adjoint_exact for a in parts)
        self.rounding_factor = max(1.0, *(a.rounding_factor for a in parts))

    def unit_roundoff(self, dtype: torch.dtype) -> float:
        return max(a.unit_roundoff(dtype) for a in self.parts)

    def display(self, x: Tensor) -> Tensor:
        return self.parts[-1].display(x)

    def tensors(self) -> list[tuple[Tensor, float]]:
        return [t for a in self.parts for t in a.tensors()]


class Composition(Combined):
    r"""A B: first B, then A. With A', B' the adjoints as they are computed, its adjoint is B' A'.

    With N, m, e, c for ``norm_bound``, ``lower_bound``, ``adjoint_mismatch`` and ``rounding_factor``:

    * N = N_A N_B and m = m_A m_B: \|\|A(Bx)\|\| lies between m_A \|\|Bx\|\| and N_A \|\|Bx\|\|;
    * 1 + e = (1 + e_A)(1 + e_B): B'A'y - B^T A^T y = (B' - B^T) A'y + B^T (A' - A^T) y, and \|\|A'y\|\| <=
      (1 + e_A) N_A \|\|y\|\|;
    * c = c_A + c_B: the relative errors of the products add up;
    * a derivative in what is learned of A is one at Bx, with N_B times the constant of A; of B, with N_A times its own.

    Parameters
    ----------
    a, b : LinearOperator
        A and B.

    Raises
    ------
    ValueError
        The range of B is not the domain of A.
    """

    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        domain, middle = sides(b, a.domain_shape)
        inner, range_ = sides(a, middle[0])
        if inner != middle:
            raise ValueError(f"A @ B needs the range of B to be the domain of A, but these are {described(a, b)}")
        super().__init__((a, b), domain, range_, a.norm_bound * b.norm_bound, a.lower_bound * b.lower_bound)
        self.adjoint_mismatch = a.adjoint_mismatch + b.adjoint_mismatch + a.adjoint_mismatch * b.adjoint_mismatch
        self.rounding_factor = a.rounding_factor + b.rounding_factor

    def absolute_sums(self) -> tuple[Tensor, Tensor] | None:
        r"""N_A t and N_A max s for t, s of B.

        <ABx, y>^2 <= N_A^2 \|\|Bx\|\|^2 \|\|y\|\|^2, and y = Bx in the inequality of B gives \|\|Bx\|\|^2 <=
        max s sum t_j x_j^2.
        """
        a, b = self.parts
        sums, like = b.absolute_sums(), self.like()
        if sums is None or not a.norm_bound_certified or self.range_shape is None:
            return None
        dtype = torch.promote_types(sums[0].dtype, like.dtype)
        t, s = (a.norm_bound * v.to(like.device, dtype) for v in sums)
        return t, s.amax().expand(self.range_shape)

    def tensors(self) -> list[tuple[Tensor, float]]:
        a, b = self.parts
        return [(t, c * b.norm_bound) for t, c in a.tensors()] + [(t, c * a.norm_bound) for t, c in b.tensors()]

    def _forward(self, x: Tensor) -> Tensor:
        a, b = self.parts
        return a(b(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        a, b = self.parts
        return b.adjoint(a.adjoint(y))


class Sum(Combined):
    r"""A + B, with the adjoint A' + B'.

    With N, m, e, c for ``norm_bound``, ``lower_bound``, ``adjoint_mismatch`` and ``rounding_factor``:

    * N = N_A + N_B, and m is the largest of m_A - N_B, m_B - N_A and 0; norms that are estimates prove no m;
    * e = (e_A N_A + e_B N_B) / (N_A + N_B), since A' - A^T and B' - B^T add up;
    * c is the largest of c_A, c_B and 1: the errors c_A u N_A and c_B u N_B add up to at most c u N, and a sum of two
      is one of few terms.

    Parameters
    ----------
    a, b : LinearOperator
        A and B.

    Raises
    ------
    ValueError
        A and B have different domains or different ranges.
    """

    def __init__(self, a: LinearOperator, b: LinearOperator) -> None:
        both = sides(a, b.domain_shape)
        if both != sides(b, a.domain_shape):
            raise ValueError(f"A + B needs the same domain and the same range, but these are {described(a, b)}")
        lower = max(p.lower_bound - q.norm_bound if q.norm_bound_certified else 0.0 for p, q in ((a, b), (b, a)))
        super().__init__((a, b), *both, a.norm_bound + b.norm_bound, max(lower, 0.0))
        wrong = a.adjoint_mismatch * a.norm_bound + b.adjoint_mismatch * b.norm_bound
        self.adjoint_mismatch = wrong / self.norm_bound if wrong else 0.0

    def _forward(self, x: Tensor) -> Tensor:
        a, b = self.parts
        return a(x) + b(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        a, b = self.parts
        return a.adjoint(y) + b.adjoint(y)


class Scaled(Combined):
    r"""c A for a number c, or w A with one factor w_i for each datum (in other libraries ``Diagonal(w) @ A``).

    With square roots w of weights, \|\|w (Ax - y)\|\|^2 / 2 is the fidelity of noise with the variances 1/w^2.

    * ``norm_bound`` and ``lower_bound`` are multiplied by the largest and by the smallest \|w\|;
    * ``adjoint_mismatch`` stays: \|\|(A' - A^T) w y\|\| <= e \|\|A\|\| max \|w\| \|\|y\|\|;
    * ``rounding_factor`` is at least 1, which one more rounding error of each number is part of. Factors of factors are
      multiplied first, so that it remains one.

    Parameters
    ----------
    a : LinearOperator
        A.
    factor : float or Tensor
        c, or w of the shape of the data of one image.

    Raises
    ------
    ValueError
        Factors are not real, finite and constant, or not of the shape of the data.
    """

    factor: Tensor

    def __init__(self, a: LinearOperator, factor: float | Tensor) -> None:
        if isinstance(a, Scaled):
            factor = factor * a.factor
            a = a.parts[0]
        values = factor if isinstance(factor, Tensor) else torch.tensor(factor, dtype=torch.float64)
        if values.ndim and tuple(values.shape) != a.range_shape:
            raise ValueError(f"factors of the shape {tuple(values.shape)} are not one for each datum of {described(a)}")
        if values.is_complex() or values.requires_grad or not bool(torch.isfinite(values).all()):
            raise ValueError(f"the factors of {described(a)} must be real, finite and constant")
        sizes = values.abs()
        largest = float(sizes.amax())
        super().__init__((a,), *sides(a), a.norm_bound * largest, a.lower_bound * float(sizes.amin()))
        # Not in the state dict: factors belong to the problem, not to what is learned.
        self.register_buffer("factor", values, persistent=False)
        self.largest, self.adjoint_mismatch = largest, a.adjoint_mismatch

    def tensors(self) -> list[tuple[Tensor, float]]:
        return [(t, self.largest * c) for t, c in self.parts[0].tensors()]

    def _times(self, y: Tensor) -> Tensor:
        return self.factor.to(y.device, y.real.dtype if y.is_complex() else y.dtype) * y

    def _forward(self, x: Tensor) -> Tensor:
        return self._times(self.parts[0](x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.parts[0].adjoint(self._times(y))


class Transpose(Combined):
    r"""A^T as it is computed, A' = ``A.adjoint``; its adjoint is A, and its transpose is A itself.

    The norm of A^T is that of A, and so is the lower bound where A is square (else A^T has a kernel, or A has). If A'
    is off by e \|\|A\|\|, its norm is at most (1 + e) \|\|A\|\|, and A is off by e / (1 + e) of that. Since e is
    measured, nothing is proved of A' then; nor where nobody knows how far it is from A^T (``adjoint_exact`` is False).

    Parameters
    ----------
    a : LinearOperator
        A.
    """

    def __init__(self, a: LinearOperator) -> None:
        (domain, range_), wrong = sides(a), a.adjoint_mismatch
        known = a.adjoint_exact and not wrong
        square = _real_numbers(domain) == _real_numbers(range_)
        super().__init__((a,), range_, domain, a.norm_bound * (1 + wrong), a.lower_bound if known and square else 0.0)
        self.norm_bound_certified = self.norm_bound_certified and known
        self.adjoint_mismatch, self.rounding_factor = wrong / (1 + wrong), a.rounding_factor

    @property
    def T(self) -> LinearOperator:
        return self.parts[0]

    def display(self, x: Tensor) -> Tensor:
        return x

    def _forward(self, x: Tensor) -> Tensor:
        return self.parts[0].adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.parts[0](y)


def _real_numbers(side: Side) -> int | None:
    shape, is_complex = side
    return None if shape is None else real_size(shape, is_complex)


def stack(operators: Sequence[LinearOperator]) -> Stack:
    """The operator x -> (A_1 x, A_2 x, ...), see :class:`Stack`.

    Parameters
    ----------
    operators : sequence of LinearOperator
        A_1, A_2, ..., of the same domain.
    """
    return Stack(operators)


class Stack(Combined):
    r"""x -> (A_1 x, A_2 x, ...): images of one domain, data flattened and put one after the other.

    With N, m, e, c for ``norm_bound``, ``lower_bound``, ``adjoint_mismatch`` and ``rounding_factor``:

    * N^2 and m^2 are the sums of the N_i^2 and the m_i^2, as \|\|Ax\|\|^2 is the sum of the \|\|A_i x\|\|^2;
    * (e N)^2 is the sum of the (e_i N_i)^2: \|\|sum_i (A_i' - A_i^T) y_i\|\| <= sum_i e_i N_i \|\|y_i\|\|;
    * c is the largest of the c_i and 1: the errors c_i u N_i^2 of A_i^T A_i x add up to at most c u N^2, and the sum
      over the parts is one of few terms.

    Parameters
    ----------
    operators : sequence of LinearOperator
        A_1, A_2, ...

    Raises
    ------
    ValueError
        There are none, their domains differ, a range is not known, or some data are complex and others are not.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not operators:
            raise ValueError("a stack needs at least one operator")
        images = next((a.domain_shape for a in operators if a.domain_shape is not None), None)
        domains, ranges = zip(*(sides(a, images) for a in operators), strict=True)
        if len(set(domains)) > 1:
            raise ValueError(f"operators that are stacked have different domains: {described(*operators)}")
        known = [shape for shape, _ in ranges if shape is not None]
        if len(known) < len(operators) or len({is_complex for _, is_complex in ranges}) > 1:
            raise ValueError(f"the data of these cannot be put one after the other: {described(*operators)}")
        sizes = [math.prod(r) for r in known]
        norm, lower = math.hypot(*(a.norm_bound for a in operators)), math.hypot(*(a.lower_bound for a in operators))
        super().__init__(operators, domains[0], ((sum(sizes),), ranges[0][1]), norm, lower)
        self.ranges, self.sizes = known, sizes
        wrong = math.hypot(*(a.adjoint_mismatch * a.norm_bound for a in operators))
        self.adjoint_mismatch = wrong / norm if wrong else 0.0

    def split(self, y: Tensor) -> list[Tensor]:
        """The data of each part, in its shape."""
        return [b.view(len(y), *r) for b, r in zip(y.split(self.sizes, 1), self.ranges, strict=True)]

    def absolute_sums(self) -> tuple[Tensor, Tensor] | None:
        r"""Of the parts, with the norm bound for parts that know only that, as a single block.

        The steps 1/sum stay safe (Pock and Chambolle 2011, Lemma 2, with blocks): with s = \|\|A_i\|\| for the rows of
        such a part, \|\|A_i x\|\|^2 / s is at most s \|\|x\|\|^2, which adds s to the sum of every column.
        """
        columns, rows, like = [], [], self.like()
        for a, shape in zip(self.parts, self.ranges, strict=True):
            sums = a.absolute_sums()
            if sums is None:
                if not a.norm_bound_certified or self.domain_shape is None:
                    return None
                sums = like.new_full(self.domain_shape, a.norm_bound), like.new_full(shape, a.norm_bound)
            columns.append(sums[0].to(like.device))
            rows.append(sums[1].to(like.device).flatten())
        return torch.stack(columns).sum(0), torch.cat(rows)

    def like(self) -> Tensor:
        if self.tensors():  # what is learned takes vectors of its own type only, other operators take any
            return super().like()
        return max((a.like() for a in self.parts), key=lambda t: torch.finfo(t.dtype).bits)

    def _forward(self, x: Tensor) -> Tensor:
        return torch.cat([a(x).flatten(1) for a in self.parts], 1)

    def _adjoint(self, y: Tensor) -> Tensor:
        first, *rest = (a.adjoint(b) for a, b in zip(self.parts, self.split(y), strict=True))
        return sum(rest, first)


class Restriction(LinearOperator):
    """The part of flat vectors that begins at ``start``, in its shape: ``(batch, size) -> (batch, *shape)``.

    An orthogonal projection onto these entries: norm 1, lower bound 1 if it is all of them and 0 otherwise. It computes
    nothing, so that there are no rounding errors.

    Parameters
    ----------
    size : int
        Entries of a vector.
    shape : tuple of int
        Of the part.
    start : int
        Entries before it.

    Raises
    ------
    ValueError
        The part is not within the vector.
    """

    rounding_factor = 0.0

    def __init__(self, size: int, shape: Shape, start: int = 0) -> None:
        part = math.prod(shape)
        if not 0 <= start <= size - part:
            raise ValueError(f"vectors of {size} entries have no part of the shape {tuple(shape)} from {start} on")
        super().__init__((size,), shape, norm_bound=1.0, lower_bound=float(part == size))
        self.start, self.end = start, start + part

    def absolute_sums(self) -> tuple[Tensor, Tensor]:
        """1 within the part, 0 elsewhere."""
        rows = torch.ones(self.end - self.start)
        return self._padded(rows), rows.view(self.range_shape or ())

    def _padded(self, y: Tensor) -> Tensor:
        assert self.domain_shape is not None
        return pad(y, (self.start, self.domain_shape[0] - self.end))

    def _forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.end].reshape(len(x), *(self.range_shape or ()))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._padded(y.flatten(1))
