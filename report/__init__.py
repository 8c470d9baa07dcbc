"""What is looked at: tables, pictures, the page."""

import os

# In a notebook it names a backend that a script's environment may lack; Matplotlib would refuse to be imported.
os.environ.pop("MPLBACKEND", None)
