"""A helper that is busy for a long time."""

import os
import time


class Sleeper:
    def where(self) -> int:
        return os.getpid()

    def sleep(self) -> None:
        time.sleep(120)
