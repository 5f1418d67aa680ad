"""Rules written out plainly in float64 NumPy, from their formulas, to compare the library's with."""

import numpy as np


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, S, Vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    kept = 1e-6 * S.max(initial=0) < S
    return U[:, kept], S[kept], Vh[kept]


def orthonormal(columns: np.ndarray) -> np.ndarray:
    U, _, Vh = svd(columns)
    return U @ Vh


def iso_c(X: np.ndarray) -> np.ndarray:
    U, S, Vh = svd(X.astype(np.float64).sum(0))
    return S.mean() * U @ Vh


def iso_cts(X: np.ndarray, common: float) -> np.ndarray:
    rank = min(X.shape[1:])
    each = int((1 - common) * rank / len(X) + 1e-9)
    k = rank - each * len(X)
    U, S, Vh = (part[..., :k] if i < 2 else part[:k] for i, part in enumerate(svd(X.sum(0))))
    lefts, sizes, rights = [U], [S], [Vh]
    for x in X:
        u, s, vh = svd(x - U @ U.T @ x)
        each_here = min(each, int((s > 1e-6 * np.linalg.norm(x)).sum()))
        lefts, sizes, rights = [*lefts, u[:, :each_here]], [*sizes, s[:each_here]], [*rights, vh[:each_here]]
    return np.concatenate(sizes).mean() * orthonormal(np.hstack(lefts)) @ orthonormal(np.vstack(rights).T).T


def tsv_m(X: np.ndarray) -> np.ndarray:
    k = max(1, min(X.shape[1:]) // len(X))
    parts = [svd(x) for x in X]
    U = orthonormal(np.hstack([u[:, :k] for u, _, _ in parts]))
    V = orthonormal(np.vstack([vh[:k] for _, _, vh in parts]).T)
    return U @ np.diag(np.concatenate([s[:k] for _, s, _ in parts])) @ V.T


def wudi_exact(X: np.ndarray) -> np.ndarray:
    """Least squares: M [X_1' / |X_1|, ...] should be [X_1 X_1' / |X_1|, ...], starting from the sum."""
    X = X.astype(np.float64)
    norms = [np.linalg.norm(x) for x in X]
    right = np.hstack([x.T / n for x, n in zip(X, norms, strict=True) if n > 0])
    wanted = np.hstack([x @ x.T / n for x, n in zip(X, norms, strict=True) if n > 0])
    start = X.sum(0)
    change, *_ = np.linalg.lstsq(right.T, (wanted - start @ right).T, rcond=1e-6)
    return start + change.T


def knots(X: np.ndarray) -> np.ndarray:
    """Without trimming: of each element of the V_t the mean of the values with the sign of their sum."""
    U, S, Vh = svd(np.hstack(list(X)))
    V = np.stack(np.split(Vh, len(X), axis=1))
    agrees = np.sign(V) == np.sign(V.sum(0))
    return U @ np.diag(S) @ ((V * agrees).sum(0) / np.maximum(agrees.sum(0), 1))
