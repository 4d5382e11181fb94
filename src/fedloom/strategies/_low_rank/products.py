"""The mean of the clients' products, and how far the product of two factors is from it.

Legend: client k sends A_k (r_k, i) and B_k (o, r_k) with weight p_k, Σ p_k = 1; M = Σ p_k B_k A_k (o, i) is the mean
change of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Array, Arrays
from fedloom.strategies._low_rank.shrink import matrix_svd, product_svd


@dataclass(frozen=True, slots=True)
class MeanProduct:
    """M of one layer, as a product of stacked factors while that is smaller, otherwise as the matrix."""

    a: Array
    """[A_1; …; A_K], (R, i) with R = Σ r_k; no rows if `matrix` is set."""
    b: Array
    """[p_1 B_1 … p_K B_K], (o, R)."""
    matrix: Array | None = None
    """(o, i)."""

    def dense(self) -> Array:
        """M, float64."""
        stacked = self.b.astype(np.float64) @ self.a.astype(np.float64)
        return stacked if self.matrix is None else self.matrix + stacked

    def svd(self) -> tuple[Array, Array, Array]:
        """U (o, k), σ (k,), Vᵀ (k, i) of M."""
        return product_svd(self.a, self.b) if self.matrix is None else matrix_svd(self.dense())

    def truncated(self, rank: int) -> tuple[Array, Array]:
        """Return the best A (rank, i), B (o, rank) for M: A = Vᵀ, B = U Σ (FlexLoRA, Bai et al. 2024, s constant)."""
        u, sigma, vt = self.svd()
        return vt[:rank].astype(np.float32), (u * sigma)[:, :rank].astype(np.float32)

    def compact(self) -> tuple[Array, Array]:
        """Factors of M with as few components as it has, to rounding."""
        if self.matrix is None and len(self.a) <= min(self.a.shape[1], len(self.b)):
            return self.a.astype(np.float32), self.b.astype(np.float32)
        u, sigma, vt = self.svd()
        rank = max(1, int((sigma > sigma[0] * 1e-7).sum()))
        return vt[:rank].astype(np.float32), (u * sigma)[:, :rank].astype(np.float32)

    def minus(self, a: Array, b: Array) -> MeanProduct:
        """M - B A."""
        return MeanProduct(np.concatenate([self.a, a]), np.concatenate([self.b, -b], axis=1), self.matrix)

    def norm(self) -> float:
        """‖M‖_F."""
        if self.matrix is not None:
            return float(np.linalg.norm(self.dense()))
        triangle = np.linalg.qr(self.b.astype(np.float64), mode="r")
        return float(np.linalg.norm(triangle @ self.a.astype(np.float64)))


def relative_error(products: Mapping[str, MeanProduct], a: Arrays, b: Arrays) -> float:
    """Return ‖M - B A‖_F / ‖M‖_F over all layers together; 0 if nothing changed.

    With A and B the means of the factors the difference is exactly Σ p_k (B_k - B)(A_k - A).
    """
    apart = sum(product.minus(a[name], b[name]).norm() ** 2 for name, product in products.items())
    whole = sum(product.norm() ** 2 for product in products.values())
    return float(np.sqrt(apart / whole)) if whole > 0 else 0.0
