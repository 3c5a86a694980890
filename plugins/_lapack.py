"""Cholesky factors and products of matrices by scipy's LAPACK and BLAS, called without the interpreter's lock.

``scipy.linalg`` holds the lock for as long as a routine runs: while a head of d = 512 was solved, 20 ms, nobody was
answered, whatever cores were free. These are the same routines, which scipy offers to Cython code, on the same
arguments, so results are the same to the bit; ``ctypes`` lets go of the lock for the call.

Matrices are float64; a factor is a lower triangle in Fortran's order, and what lies above it means nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
from numpy.linalg import LinAlgError

_Floats = npt.NDArray[np.float64]
_int = ctypes.c_int


@cache
def _routine(module: str, name: str) -> Callable[..., None]:
    """Find a routine; all its arguments are addresses, as Fortran's are. The first call imports scipy's part."""
    capsule = getattr(scipy.linalg, module).__pyx_capi__[name]
    signature = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))(capsule)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    address = pointer(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, signature)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(b",") + 1))(address)


def cholesky_factor(a: _Floats) -> _Floats:
    """Factor a positive definite matrix, ``A = LLᵀ``. Raises ``LinAlgError`` where it is not positive definite."""
    factor = np.array(a, np.float64, order="F")
    if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or not factor.size:
        raise ValueError(f"a matrix of {factor.shape} has no factor")
    n, info = _int(len(factor)), _int(0)
    _routine("cython_lapack", "dpotrf")(b"L", _at(n), _data(factor), _at(n), _at(info))
    if info.value:
        raise LinAlgError(f"the leading minor of order {info.value} is not positive definite")
    return factor


def cholesky_solve(factor: _Floats, b: _Floats) -> _Floats:
    """Solve ``LLᵀx = b`` for the columns of ``b (d, m)``."""
    x = np.array(b, np.float64, order="F")
    is_factor = factor.dtype == np.float64 and factor.flags.f_contiguous and factor.shape == (len(x),) * 2
    if x.ndim != 2 or not is_factor:
        raise ValueError(f"a factor of {factor.shape} solves nothing of {x.shape}")
    n, columns, info = _int(len(factor)), _int(x.shape[1]), _int(0)
    _routine("cython_lapack", "dpotrs")(b"L", _at(n), _at(columns), _data(factor), _at(n), _data(x), _at(n), _at(info))
    return x


def add_gram(gram: _Floats, rows: _Floats, times: float) -> None:
    """Add ``times · rowsᵀ rows`` to the upper triangle of ``gram (d, d)``, in place."""
    rows = np.ascontiguousarray(rows, np.float64)
    if gram.dtype != np.float64 or not gram.flags.carray or gram.shape != (rows.shape[1],) * 2:
        raise ValueError(f"a matrix of {gram.shape} in C's order takes no products of rows of {rows.shape}")
    # To Fortran rows are columns: its lower triangle is our upper one.
    d, n, alpha, beta = _int(len(gram)), _int(len(rows)), ctypes.c_double(times), ctypes.c_double(1.0)
    _routine("cython_blas", "dsyrk")(
        b"L", b"N", _at(d), _at(n), _at(alpha), _data(rows), _at(d), _at(beta), _data(gram), _at(d)
    )


def _at(value: Any) -> int:
    return ctypes.addressof(value)


def _data(array: _Floats) -> int:
    return array.ctypes.data
