"""What one run is: typed settings, read from YAML and the command line."""

from pml_cli.config.schema import *  # noqa: F403
from pml_cli.config.schema import TINY  # noqa: F401
