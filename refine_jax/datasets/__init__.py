"""Images and labels, and the order in which a training sees them."""

from refine_jax.datasets.images import Dataset as Dataset
from refine_jax.datasets.images import Split as Split
from refine_jax.datasets.registry import check_options as check_options
from refine_jax.datasets.registry import load as load
from refine_jax.datasets.registry import names as names
from refine_jax.datasets.registry import options as options
from refine_jax.datasets.subset import limit_training as limit_training
