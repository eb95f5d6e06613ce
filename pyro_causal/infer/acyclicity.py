r"""Acyclicity: functions of a matrix that are zero exactly where its graph has no directed cycle.

They take non-negative matrices :math:`A` of shape ``[*batch, d, d]``, whose entry (i, j) is the
probability or the squared weight of the edge i -> j, and ignore the diagonal. Gradients are
non-negative, and positive where an edge is on a cycle (of the strongest group of cycles, for the
spectral radius).

=========================  ====================================  =================  ==============
function                   what a lone cycle of k edges with     value for d = 50,  microseconds,
                           product p has                         all entries 1      10, 20, 50
=========================  ====================================  =================  ==============
:func:`trace_exponential`  :math:`p / (k - 1)!`, powers of p     2e21               530, 700, 1400
:func:`power_series`       :math:`k \binom{d}{k} p / d^k`        7e14               210, 290, 570
:func:`log_determinant`    :math:`p / s^{k-2}`, powers of p      7400 if s = d       240, 290, 370
:func:`spectral_radius`    :math:`p^{1/k}`                       49                 410, 490, 880
=========================  ====================================  =================  ==============

For the first three a lone cycle of two edges counts about p, so that they can take each other's
place. In exact numbers each is positive for every cycle. In floating point long ones fade from the
first three: 15 edges of probability 1 among 15 nodes have 1e-11, 3e-17 and, for ``s = d`` in single
precision, nothing, since a logarithm loses what is small beside 1. The spectral radius sees all
cycles, but only the strongest group of them at a time; and where entries are squares of weights,
which reach zero, it has kinks, around which an optimiser swings. In single precision the first two
overflow for 100 and 200 nodes.

The times are those of a value and its gradient on one thread (``benchmarks/acyclicity.py``; the
exponential by ``torch.matrix_exp`` takes 420, 540, 1650), and grow with the third power.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_causal._reachability import reached

__all__ = [
    "is_dag",
    "log_determinant",
    "power_series",
    "spectral_radius",
    "threshold_to_dag",
    "trace_exponential",
]

TERMS = 14  # of the exponential of a matrix of norm below 1/2: the next is 2e-17 of the first
SQUARINGS = 24  # 2^24 steps of the power iteration


def trace_exponential(matrix: Tensor) -> Tensor:
    r"""The trace of the exponential, less that of the identity.

    .. math:: h(A) = \operatorname{tr} e^A - d = \sum_{k \ge 1} \operatorname{tr}(A^k) / k!

    The identity is never added, so that nothing is lost to rounding: a graph without cycles gives
    zero and not :math:`10^{-6}`, and a small value is as accurate as a large one.

    **Shapes**: ``[*batch, d, d]`` to ``[*batch]``.

    **Raises**: ``ValueError`` if the matrix is not square or not of finite numbers from 0.

    **References**: *DAGs with NO TEARS*, https://arxiv.org/abs/1803.01422, theorem 1, there for
    :math:`A = W \circ W`.

    **Example**::

        >>> trace_exponential(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # 2 cosh 1 - 2
        tensor(1.0862)
    """
    x = _checked("trace_exponential", matrix)
    norm = x.detach().sum(-1).max().item()
    halvings = max(0, math.frexp(norm)[1] + 1)
    x = x / 2**halvings
    result = x
    for k in range(TERMS, 1, -1):
        result = x + x @ result / k
    return _trace(_power_less_one(result, 2**halvings))


def power_series(matrix: Tensor, *, order: int | None = None) -> Tensor:
    r"""A power series that ends, in its binomial form.

    .. math:: h(A) = \operatorname{tr} (I + A / n)^n - d = \sum_{k=1}^n \binom{n}{k}
        \operatorname{tr}(A^k) / n^k

    It is the trace of the exponential, cut after n terms. The plain sum
    :math:`\sum_k \operatorname{tr} A^k` has the same zeros, but takes n products instead of
    :math:`2 \log_2 n` at most, and for 50 nodes it overflows single precision.

    **Arguments**: ``order``, the longest cycle n that is seen: positive on every cycle of n edges
    or fewer, and zero on longer ones. By default ``d``, which is all of them.

    **Shapes**: ``[*batch, d, d]`` to ``[*batch]``.

    **Raises**: ``ValueError`` if the matrix is not square or not of finite numbers from 0, or the
    order is less than 2.

    **References**: *DAG-GNN: DAG structure learning with graph neural networks*,
    https://arxiv.org/abs/1904.10098, theorem 1 with :math:`\alpha = 1/n`.

    **Example**::

        >>> power_series(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    x = _checked("power_series", matrix)
    n = max(2, x.shape[-1]) if order is None else order
    if n < 2:
        raise ValueError(f"power_series: expected an order from 2, got {order}. Take more.")
    return _trace(_power_less_one(x / n, n))


def log_determinant(matrix: Tensor, *, s: float | None = None) -> Tensor:
    r"""The logarithm of a determinant, which weighs long cycles by a power and no factorial.

    .. math:: h(A) = s^2 \bigl(d \log s - \log \det(s I - A)\bigr)
        = \sum_{k \ge 2} \operatorname{tr}(A^k) / (k s^{k-2})

    The series holds where the spectral radius is below s. Elsewhere the determinant may still be
    positive, but says nothing of cycles; this is an error, since there is no value which would lead
    back.

    **Arguments**: ``s``, by default ``d``, which is safe for every matrix of probabilities (at most
    1). For weights that start at zero take 1, which makes much more of long cycles, and
    a learning rate that does not leave the domain.

    **Shapes**: ``[*batch, d, d]`` to ``[*batch]``.

    **Raises**: ``ValueError`` if the matrix is not square or not of finite numbers from 0, or its
    spectral radius is s or more.

    **References**: *DAGMA: learning DAGs via M-matrices and a log-determinant acyclicity
    characterization*, https://arxiv.org/abs/2209.08037, theorem 1, there for :math:`A = W \circ W`,
    with smaller and smaller s, and without the factor :math:`s^2`, which keeps the weight of a
    cycle of two edges the same for all s.

    **Example**::

        >>> log_determinant(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # 8 log 2 - 4 log 3
        tensor(1.1507)
    """
    x = _checked("log_determinant", matrix)
    s = float(x.shape[-1]) if s is None else s
    inside = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) - x / s
    # Off the diagonal this is negative, so its inverse is non-negative if and only if a positive
    # vector has a positive image, which is so if and only if the spectral radius of A is below s.
    ones = torch.ones_like(x[..., :1])
    solution, singular = torch.linalg.solve_ex(inside.detach(), ones)
    if singular.any() or not (solution > 0).all():
        radius = torch.linalg.eigvals(x.detach()).abs().max().item()
        raise ValueError(
            f"log_determinant: expected a matrix of spectral radius below s={s:g}, got "
            f"{radius:.4g}. Give a larger s, start nearer to zero, or lower the learning rate."
        )
    return s**2 * (0.0 - torch.linalg.slogdet(inside).logabsdet)


def spectral_radius(matrix: Tensor) -> Tensor:
    r"""The largest modulus of an eigenvalue.

    .. math:: h(A) = \rho(A) = \lim_{k \to \infty} \lVert A^k \rVert^{1/k}, \qquad
        \partial h / \partial A = u v^\top / u^\top v, \quad A v = \rho v, \; u^\top A = \rho u^\top

    It stays in proportion to the matrix, :math:`h(tA) = t h(A)`, and neither explodes with strong
    cycles nor vanishes with long ones. But where two separate groups of cycles are of one strength
    it has a kink, and near to a graph without cycles it is steep, like the k-th root of the weakest
    edge of a cycle. The gradient at an edge that is on no cycle is zero.

    **Shapes**: ``[*batch, d, d]`` to ``[*batch]``.

    **Raises**: ``ValueError`` if the matrix is not square or not of finite numbers from 0.

    **References**: *Scaling structural learning with NO-BEARS to infer causal transcriptome
    networks*, https://arxiv.org/abs/1911.00081, there by a few power iterations on vectors, which
    circle between the nodes of a lone cycle and decay on a graph without; here edges on no cycle
    are left out, the identity is added, and powers are taken by squaring, up to :math:`2^{24}`.
    *Stable differentiable causal discovery*, https://arxiv.org/abs/2311.10263, on its stability.

    **Example**::

        >>> spectral_radius(torch.tensor([[0.0, 4.0], [1.0, 0.0]]))
        tensor(2.)
    """
    x = _checked("spectral_radius", matrix)
    with torch.no_grad():
        paths = reached(x > 0)
        cyclic = paths & paths.mT
        core = torch.where(cyclic, x, 0.0).double()
        top = core.amax((-2, -1), keepdim=True)
        power = core / torch.where(top > 0, top, 1.0)
        power = power + torch.eye(x.shape[-1], dtype=power.dtype, device=x.device)
        for _ in range(SQUARINGS):
            power = power @ power
            power = power / _trace(power)[..., None, None]
        # Now it is v u^T / u^T v, the transposed gradient; and by Euler's theorem the value is
        # the product of gradient and matrix.
        gradient = power.mT.to(x.dtype)
    return (gradient * x).sum((-2, -1))


def is_dag(adjacency: Tensor) -> Tensor:
    """Whether a graph has no directed cycle; a loop at a node is one.

    **Shapes**: ``[*batch, d, d]``, where an edge is whatever is not zero, to booleans ``[*batch]``.

    **Raises**: ``ValueError`` if the matrix is not square.

    **Example**::

        >>> is_dag(torch.tensor([[[0, 1], [0, 0]], [[0, 1], [1, 0]]]))
        tensor([ True, False])
    """
    _require_square("is_dag", adjacency)
    return ~reached(adjacency != 0).diagonal(dim1=-2, dim2=-1).any(-1)


def threshold_to_dag(probabilities: Tensor, *, threshold: float = 0.5) -> Tensor:
    """The edges above a threshold, without those that would close a cycle of stronger ones.

    Edges enter in the order of their probability, and one that would close a cycle is left out.
    So a graph that is acyclic above the threshold is returned as it is, and no other edge above the
    threshold could be added to the result. (A higher threshold for all edges would lose the weaker
    ones that are on no cycle.) Of equal edges the first row, and the first column, is first.

    **Shapes**: ``[*batch, d, d]`` to booleans of the same shape.

    **Raises**: ``ValueError`` if the matrix is not square or not of finite numbers from 0.

    **Example**::

        >>> edges = torch.tensor([[0.0, 0.9, 0.2], [0.7, 0.0, 0.6], [0.8, 0.1, 0.0]])
        >>> threshold_to_dag(edges).int()
        tensor([[0, 1, 0],
                [0, 0, 0],
                [1, 0, 0]], dtype=torch.int32)
    """
    x = _checked("threshold_to_dag", probabilities.detach())
    wanted = x > threshold
    if is_dag(wanted).all():
        return wanted
    d = x.shape[-1]
    strength = torch.where(wanted, x, -1.0).reshape(-1, d * d)
    edges = strength.argsort(descending=True, stable=True)
    row = torch.arange(len(edges), device=x.device)
    kept = torch.zeros(len(edges), d, d, dtype=torch.bool, device=x.device)
    behind = torch.eye(d, dtype=torch.bool, device=x.device).repeat(len(edges), 1, 1)
    for k in range(int(wanted.sum((-2, -1)).max())):
        i, j = edges[:, k] // d, edges[:, k] % d
        enters = (strength[row, edges[:, k]] >= 0) & ~behind[row, j, i]
        kept[row, i, j] = enters
        joined = behind[row, :, i].unsqueeze(-1) & behind[row, j].unsqueeze(-2)
        behind |= joined & enters[:, None, None]
    return kept.reshape(x.shape)


def _checked(name: str, matrix: Tensor) -> Tensor:
    """The matrix without its diagonal."""
    _require_square(name, matrix)
    loops = torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    matrix = matrix.masked_fill(loops, 0.0)
    values = matrix.detach()
    if not ((values >= 0) & values.isfinite()).all():
        raise ValueError(
            f"{name}: expected finite numbers from 0, got {values.min():.4g} to "
            f"{values.max():.4g}. Give probabilities, or the squares of weights."
        )
    return matrix


def _require_square(name: str, matrix: Tensor) -> None:
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"{name}: expected a square matrix [*batch, d, d], got shape {tuple(matrix.shape)}. "
            "Give one row and one column for each variable."
        )


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _power_less_one(x: Tensor, n: int) -> Tensor:
    """(I + x)^n - I, without ever adding I."""
    result = None
    while True:
        if n % 2:
            result = x if result is None else result + x + result @ x
        n //= 2
        if not n:
            assert result is not None
            return result
        x = 2 * x + x @ x
