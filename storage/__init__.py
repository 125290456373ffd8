"""What is kept, and the rules for keeping it: no HTTP, no processes."""

import os

# One query is one matrix-vector product of a few megabytes: handing it to OpenBLAS's threads cost twenty times what it
# saved (48 ms against 2.6 ms for 100,000 x 100 on two busy cores). It reads this when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
