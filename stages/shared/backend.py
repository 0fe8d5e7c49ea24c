"""Loads Keras and its backend without TensorFlow's start-up chatter."""

import os
import sys
import tempfile
from types import ModuleType


def import_keras() -> ModuleType:
    """Imports Keras with whatever backend KERAS_BACKEND names (TensorFlow by default).

    TensorFlow logs to the process's standard error before any of its settings can stop it, so that
    is turned away while it loads, and shown after all if loading fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import keras
        except BaseException:
            chatter.seek(0)
            os.write(stderr, chatter.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    return keras
