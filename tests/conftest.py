"""What holds for all tests."""

from hypothesis import settings

settings.register_profile("itae", deadline=None)  # how long an example takes says only how busy the machine is
settings.load_profile("itae")
