from . import accelerate as accelerate, errors as errors, launch as launch, optim as optim, ray as ray
from .accelerator import Accelerator as Accelerator
from .data import DataLoader as DataLoader
from .engine import Engine as Engine
from .errors import TierflowError as TierflowError
from .llama import Llama as Llama
from .lora_model import LoraConfig as LoraConfig, LoraModel as LoraModel, get_peft_model as get_peft_model
from .plans import Plan as Plan, devices as devices, plan as plan
from .prepared import DataLoaderConfiguration as DataLoaderConfiguration
from .seeds import set_seed as set_seed
from .streams import Stream as Stream
from .token_batches import pad_samples as pad_samples

__version__: str
