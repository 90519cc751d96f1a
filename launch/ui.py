"""`gradrank ui`: MLflow's server on this machine, with the right store."""

import os
import sys
from pathlib import Path

from launch.errors import UserError


def serve(uri: str | None, port: int) -> None:
    """Become MLflow's server on 127.0.0.1.

    Raises:
        UserError: the store is a database file that does not exist.
    """
    from launch.tracking import tracking_uri

    resolved = tracking_uri(uri)
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        raise UserError(f"there is no store at {resolved}; `gradrank run CONFIG` makes one, or name another with --uri")
    print(f"MLflow at http://127.0.0.1:{port} (store {resolved}); Ctrl-C ends it", flush=True)  # noqa: T201
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", resolved]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)
