"""REFINE in JAX: defends classifiers against backdoors by model reprogramming."""

from refine_jax import attacks as attacks
from refine_jax import datasets as datasets
from refine_jax import defenses as defenses
from refine_jax import evaluation as evaluation
from refine_jax import export as export
from refine_jax import interop as interop
from refine_jax import losses as losses
from refine_jax import networks as networks
from refine_jax.classifier import Classifier as Classifier
from refine_jax.defenses import blackbox as blackbox
from refine_jax.defenses.defend import defend as defend
from refine_jax.defenses.defend import defend_seeds as defend_seeds
