"""What holds for all tests."""

import signal

from hypothesis import settings

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("itae", deadline=None)  # how long an example takes says only how busy the machine is
settings.load_profile("itae")
