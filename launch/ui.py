"""`gradrank ui`: MLflow's server on this machine, with the right store."""

import os
import sys

from launch.view import comparison_url


def serve(uri: str | None, experiment: str | None, port: int) -> None:
    """Become MLflow's server on 127.0.0.1, and tell where the newest study's comparison is.

    Raises:
        UserError: the store does not exist or answer, or the experiment holds no study.
    """
    from launch.tracking import Store, read_study_record

    store = Store.open(uri)
    study = read_study_record(store, experiment)
    url = comparison_url(f"http://127.0.0.1:{port}", study.experiment_id, study.run_id)
    print(f"{study.name}, {len(study.cells)} cells side by side (Ctrl-C ends the server):\n\n  {url}\n", flush=True)  # noqa: T201
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)
