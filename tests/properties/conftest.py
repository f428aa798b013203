"""How many inputs are drawn: a few, the same at every run, or thousands."""

import os

from hypothesis import HealthCheck, settings

# A shared machine may be slow, which is no fault of a property.
PATIENT = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "few",
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=PATIENT,
)
settings.register_profile(
    "thorough",
    max_examples=3000,
    database=None,
    deadline=None,
    suppress_health_check=PATIENT,
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))
