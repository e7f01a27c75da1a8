from . import accelerate as accelerate, errors as errors, launch as launch, ray as ray
from .accelerator import Accelerator as Accelerator
from .data import DataLoader as DataLoader
from .engine import Engine as Engine
from .errors import TierflowError as TierflowError
from .llama import Llama as Llama
from .plans import Plan as Plan, devices as devices, plan as plan
from .prepared import DataLoaderConfiguration as DataLoaderConfiguration
from .seeds import set_seed as set_seed
from .streams import Stream as Stream

__version__: str
