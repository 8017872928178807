"""What the tests share: the array libraries they run on, and the real data they compare with."""
import os
from pathlib import Path

import numpy  # noqa: F401
import pytest
import scipy.linalg  # noqa: F401
from threadpoolctl import threadpool_limits

threadpool_limits(1, user_api="blas")                                       # of the libraries loaded above; small matrices: threads would only wait


def library(name):
    """The namespace and device of an array library, or a skip that says why."""
    if name == "numpy":
        import array_api_compat.numpy as xp
        return xp, None
    if name == "strict":
        import array_api_strict as xp
        return xp, xp.Device("device1")
    if name == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
        import array_api_compat.torch as xp
        return xp, None
    cupy = pytest.importorskip("cupy", reason="no GPU (CuPy is not installed)")
    if not cupy.is_available():
        pytest.skip("no GPU")
    import array_api_compat.cupy as xp
    return xp, None


@pytest.fixture(params=["numpy", "strict", "torch", "cupy"])
def backend(request):
    return library(request.param)


def to_numpy(a):
    """Back from any library; array_api_strict hands its arrays out only on its CPU device."""
    import numpy as np

    import metrics
    return np.from_dlpack(a.to_device(type(a.device)("CPU_DEVICE"))) if hasattr(a, "to_device") and "strict" in type(a).__module__ \
        else metrics.to_numpy(a)


@pytest.fixture
def real_data():
    """The path of a file of shared data; skips, naming it, where it is absent."""
    def find(name):
        here = Path(__file__).parent.parent
        for folder in (os.environ.get("SPARSEDIS_DATA"), here / "shared/data", here.parent / "shared/data", "../shared/data"):
            if folder and (Path(folder) / name).exists():
                return Path(folder) / name
        pytest.skip(f"{name} is not in $SPARSEDIS_DATA, ./shared/data or ../shared/data")
    return find
