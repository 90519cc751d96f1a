"""`gradrank ui`: MLflow's server on this machine, with the right store."""

import os
import sys
from pathlib import Path

from launch.errors import UserError
from launch.view import comparison_url


def serve(uri: str | None, experiment: str | None, port: int) -> None:
    """Become MLflow's server on 127.0.0.1, and tell where the newest study's comparison is.

    Raises:
        UserError: the store is a database file that does not exist, or the experiment holds no study.
    """
    from launch.tracking import Store, read_study_record, tracking_uri

    resolved = tracking_uri(uri)
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        raise UserError(f"there is no store at {resolved}; `gradrank run CONFIG` makes one, or name another with --uri")
    study = read_study_record(Store.open(uri), experiment)
    url = comparison_url(f"http://127.0.0.1:{port}", study.experiment_id, study.run_id)
    print(f"{study.name}, {len(study.cells)} cells side by side (Ctrl-C ends the server):\n\n  {url}\n", flush=True)  # noqa: T201
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--backend-store-uri", resolved]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)
