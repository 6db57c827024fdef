"""Black box: of the victim there are its probabilities, or its top labels, to be had, and nothing else.

The victim is a Python function, which may be slow, fail or limit its callers. `Oracle` asks it, counts what is asked,
keeps what was answered and never asks that again; `defend` puts REFINE in front of it.
"""

from refine_jax.defenses.blackbox.defend import DefendedOracle as DefendedOracle
from refine_jax.defenses.blackbox.defend import defend as defend
from refine_jax.defenses.blackbox.oracle import BudgetSpent as BudgetSpent
from refine_jax.defenses.blackbox.oracle import Oracle as Oracle
from refine_jax.defenses.blackbox.oracle import OracleError as OracleError
from refine_jax.defenses.blackbox.oracle import RateLimited as RateLimited
