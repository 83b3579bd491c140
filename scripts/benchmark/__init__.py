"""`scripts/bench`: how fast ITAE's models are beside what a user would have, on one machine, in one run.

Every contestant lives in a process of its own, is compared with eager PyTorch before it is timed, and takes its
turns in orders that give each the same places. Only `__main__` prints on stdout.
"""
