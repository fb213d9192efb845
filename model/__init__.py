"""What is computed: modules and pure functions that know no mesh, no device, no data set, no config object and no
file."""

from model import platforms
from model.errors import UserError
from model.families.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig", "UserError", "platforms"]
