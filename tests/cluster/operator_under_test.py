"""Runs the operator as `lunaq-operator run` does, with the pauses a test can wait for; started by `operator`.

Its one argument is a JSON object of `Settings` fields.
"""

import json
import sys

from lunaq_operator import main, oplogs
from lunaq_operator.settings import Settings

if __name__ == "__main__":
    oplogs.configure("text", "info")
    main.run_or_exit(main.serve(Settings(**json.loads(sys.argv[1]))))
