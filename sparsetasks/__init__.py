"""sparsetasks -- the method on other people's data: an estimator, and heads for PyTorch and JAX.

    from sparsetasks import SparseTasks
    from sparsetasks.torch_heads import LassoHead, RidgeHead, SVMHead
    from sparsetasks.jax_heads import lasso
"""
from sparsetasks.estimator import SparseTasks as SparseTasks
