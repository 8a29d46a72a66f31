"""Limited-memory BFGS matrices for a batch of vectors, each with its own history, in compact form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon.lower_level.batch import over_image, per_image_dot
from recon.lower_level.solvers.compiled.lbfgs import CompiledLoops
from recon.lower_level.solvers.compiled.library import usable
from recon.lower_level.solvers.preconditioner import Preconditioner

#: share of |s| |y| that <s, y> of a pair must exceed: it is made of rounding errors otherwise
CURVATURE = 1e-10
#: entries from which matrices are multiplied one by one
_LARGE = 2048


class InverseHessian:
    r"""The L-BFGS approximation H of an inverse Hessian, per image (Byrd, Nocedal, Schnabel 1994, eq. 3.1).

    With the pairs S = (s_i), Y = (y_i) in order of age, R_ij = <s_i, y_j> for i <= j, D = diag <s_i, y_i>:

        H g = gamma g + S R^{-T} ((D + gamma Y^T Y) R^{-1} S^T g - gamma Y^T g) - gamma Y R^{-1} S^T g.

    Two passes over the history per product, instead of the 4m of the two-loop recursion. Vectors are flattened:
    ``(batch, n)``. Images have their own ring buffers, because they accept their steps at different iterations.

    With a preconditioner P about the Hessian, H_0 = gamma P^{-1} in place of gamma: the same formula with P^{-1} g in
    place of the first g, Z = P^{-1} Y in place of the last Y, and Y^T Z, Z^T g in place of Y^T Y, Y^T g. Y itself is
    nowhere needed, so Z is stored in its place: no product with P^{-1} but those of g and the newest y.
    """

    def __init__(self, like: Tensor, memory: int) -> None:
        batch, n = like.shape
        self.pairs = like.new_zeros(batch, 2 * memory, n)  # s_0 ... s_{m-1}, y_0 ... y_{m-1}
        self.gram = like.new_zeros(batch, 2 * memory, 2 * memory, dtype=torch.float64)
        self.count = torch.zeros(batch, dtype=torch.int64, device=like.device)

    @classmethod
    def of(cls, pairs: Tensor, gram: Tensor, count: Tensor) -> InverseHessian:
        """That of these tensors, as in :meth:`state_dict`; they are updated in place."""
        history = object.__new__(cls)
        history.pairs, history.gram, history.count = pairs, gram, count
        return history

    @property
    def memory(self) -> int:
        """The number of pairs that are kept."""
        return self.pairs.shape[1] // 2

    def update(self, rows: Tensor, s: Tensor, y: Tensor, z: Tensor | None = None) -> None:
        """Append the pairs (s, y) to the histories of the images ``rows``; <s, y> > 0 is the caller's business.

        ``z``: P^{-1} y, if there is a preconditioner.
        """
        if rows.numel() == 0:
            return
        head, m = self.count[rows] % self.memory, self.memory
        self.pairs[rows, head], self.pairs[rows, m + head] = s, y if z is None else z
        whole = rows.numel() == self.pairs.shape[0]
        # <s_i, y> and <y_i, y> for all i; products of the new s with older y are below the diagonal of R
        column = _products(self.pairs if whole else self.pairs[rows], y).double()
        self.gram[rows, m + head, :] = column
        self.gram[rows, :, m + head] = column
        self.count[rows] += 1

    def products(self, g: Tensor) -> Tensor:
        """<s_i, g> and <y_i, g> for all slots, ``(batch, 2 memory)``, float64."""
        return _products(self.pairs, g).double()

    def apply(self, g: Tensor, gamma: Tensor, inverse: Tensor | None = None, products: Tensor | None = None) -> Tensor:
        """H g per image; ``gamma`` is the initial scaling of the images that have no pair yet, ``(batch,)``.

        ``inverse``: P^{-1} g, if there is a preconditioner; ``products``: what :meth:`products` returned for g, if the
        caller knows it already.
        """
        first = g if inverse is None else inverse
        m, batch = self.memory, g.shape[0]
        if not bool((self.count > 0).any()):
            return gamma.to(g)[:, None] * first
        if products is None:
            products = self.products(g)
        # slots from the oldest pair to the newest; empty slots come first and hold zeros
        order = (self.count[:, None] + torch.arange(m, device=g.device)) % m
        sg, yg = products.gather(1, order), products.gather(1, order + m)
        take = torch.arange(batch, device=g.device)[:, None, None]
        sy = self.gram[take, order[:, :, None], (order + m)[:, None, :]]
        yy = self.gram[take, (order + m)[:, :, None], (order + m)[:, None, :]]
        d = sy.diagonal(dim1=1, dim2=2)
        r = torch.triu(sy) + torch.diag_embed((d == 0).double())
        newest = d[:, -1] / yy[:, -1, -1].clamp_min(torch.finfo(torch.float64).tiny)
        gamma = torch.where(self.count > 0, newest, gamma.double())[:, None]
        p = torch.linalg.solve_triangular(r, sg[..., None], upper=True)[..., 0]
        inner = d * p + gamma * ((yy @ p[..., None])[..., 0] - yg)
        q = torch.linalg.solve_triangular(r.mT, inner[..., None], upper=False)[..., 0]
        weights = torch.zeros_like(products)
        weights.scatter_(1, order, q)
        weights.scatter_(1, order + m, -gamma * p)
        return torch.addcmul(_products(self.pairs.mT, weights.to(g)), gamma.to(g), first)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""
        return {"pairs": self.pairs, "gram": self.gram, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.pairs, self.gram, self.count = state["pairs"], state["gram"], state["count"]


def curved(s: Tensor, y: Tensor, sy: Tensor) -> Tensor:
    """Which pairs have a positive curvature <s, y>, beyond rounding errors."""
    return sy > CURVATURE * s.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)


def spectral(s: Tensor, y: Tensor) -> Tensor:
    """The step <s, y> / <y, y> of Barzilai and Borwein."""
    return (per_image_dot(s, y) / per_image_dot(y, y)).double()


@dataclass
class Pairs:
    """The newest pairs (s, y) of every image, and the product with the L-BFGS matrix restricted to some pixels.

    s, y: ``(batch, memory, ...)``; count: of all pairs so far, ``(batch,)``. They are updated in place.
    """

    s: Tensor
    y: Tensor
    count: Tensor

    def update(self, accepted: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """Keep the pairs of the images where ``accepted``, if they are of use; returns of which they are."""
        useful = accepted & curved(s, y, per_image_dot(s, y))
        rows = torch.nonzero(useful).flatten()
        head = self.count[rows] % self.s.shape[1]
        self.s[rows, head], self.y[rows, head] = s[rows], y[rows]
        self.count[rows] += 1
        return useful

    def apply(self, grad: Tensor, free: Tensor, gamma: Tensor, inverse: Preconditioner | None) -> Tensor:
        """H g: two loops over the pairs, all vectors restricted to the pixels ``free``.

        A restricted pair without positive curvature is left out. With a preconditioner, H_0 = P^{-1} between two
        restrictions, times the Barzilai-Borwein scale of the newest pair in its metric.
        """
        kernel = usable(self.s)
        loops = Loops(self, free) if kernel is None else CompiledLoops(kernel, self, free, CURVATURE)
        q, some = loops.down(grad * free), loops.newest >= 0
        if inverse is None:
            return loops.up(over_image(torch.where(some, loops.sy / loops.yy, gamma), q) * q)
        y = self.y[torch.arange(len(q), device=q.device), loops.newest.clamp_min(0)] * free
        scale = torch.where(some, loops.sy / per_image_dot(y, inverse(y) * free), 1.0)
        return loops.up(over_image(scale, q) * (inverse(q) * free))


class Loops:
    """The loops over pairs that are restricted to some pixels, the first of which finds out which pairs are of use.

    Parameters
    ----------
    pairs : Pairs
        They stay as they are.
    free : Tensor
        Which pixels, of the shape of images.

    Attributes
    ----------
    newest : Tensor
        The slot of the newest pair that is of use, -1 if there is none, ``(batch,)``.
    sy, yy : Tensor
        <s, y> and <y, y> of this pair.
    """

    def __init__(self, pairs: Pairs, free: Tensor) -> None:
        self.pairs, self.free = pairs, free
        self.newest = torch.full_like(pairs.count, -1)
        self.sy, self.yy = (torch.zeros_like(pairs.count, dtype=torch.float64) for _ in range(2))
        self._stack: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def down(self, q: Tensor) -> Tensor:
        """The first loop, from the newest pair to the oldest."""
        count, memory = self.pairs.count, self.pairs.s.shape[1]
        images = torch.arange(len(q), device=q.device)
        for k in range(memory):
            slot = (count - 1 - k) % memory  # empty ones last
            s, y = self.pairs.s[images, slot] * self.free, self.pairs.y[images, slot] * self.free
            sy = per_image_dot(s, y)
            good = curved(s, y, sy)
            if not good.any():
                continue
            first = good & (self.newest < 0)
            if first.any():
                self.newest = torch.where(first, slot, self.newest)
                self.sy, self.yy = torch.where(first, sy, self.sy), torch.where(first, per_image_dot(y, y), self.yy)
            rho = torch.where(good, 1 / sy, 0.0)
            a = rho * per_image_dot(s, q)
            q = q - over_image(a, q) * y
            self._stack.append((s, y, rho, a))
        return q

    def up(self, r: Tensor) -> Tensor:
        """The second loop, from the oldest pair to the newest."""
        for s, y, rho, a in reversed(self._stack):
            r = r + over_image(a - rho * per_image_dot(y, r), r) * s
        return r


def _products(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrix times vector, image by image: ``(batch, k, n), (batch, n) -> (batch, k)``.

    One by one where they are large: on CPUs, batched products take 11 times as long for 16 matrices of 20 x 4096
    entries as their products alone, which also do not depend on the size of the batch.
    """
    if matrices.is_cuda or matrices.shape[1] * matrices.shape[2] < _LARGE:
        return (matrices @ vectors[..., None])[..., 0]
    found = vectors.new_empty(matrices.shape[:2])
    for matrix, vector, product in zip(matrices, vectors, found, strict=True):
        torch.mv(matrix, vector, out=product)
    return found
