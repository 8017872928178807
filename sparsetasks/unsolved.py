"""unsolved.py -- fits that are not solved are told: what follows from them is not exact."""
import warnings


def warn_of_unsolved(info):
    """Warn where the info of a solver calls tasks (T,) not converged."""
    unsolved = int((~info["converged"]).sum())
    if unsolved:
        warnings.warn(f"{unsolved} of {len(info['converged'])} fits are not solved", stacklevel=3)
