"""Who is asked in a round: one choice a file, what each may look at, and what it keeps."""

from .contract import Ask, Choice, Chosen, Learned
from .cyclic import Cyclic
from .fair import Fair
from .importance import Importance
from .oort import Oort
from .parse import choice, choices
from .poisson import Poisson
from .power import Power
from .tifl import TiFL
from .uniform import Uniform
from .weighted import Weighted

__all__ = [
    "Ask",
    "Choice",
    "Chosen",
    "Cyclic",
    "Fair",
    "Importance",
    "Learned",
    "Oort",
    "Poisson",
    "Power",
    "TiFL",
    "Uniform",
    "Weighted",
    "choice",
    "choices",
]
