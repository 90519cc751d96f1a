"""The comparison of a study's cells as a shared view of MLflow's experiment page.

MLflow keeps a shared view in a tag of the experiment, named by a key that links to the view carry.
Sorting by a metric lists the cells flat; sorted by time they would be folded under their study.
"""

import json
from typing import Any

from launch.figures import QUALITY

TAG_PREFIX = "mlflow.sharedViewState."

AGAINST_RANK = (
    *(f"summary/{quality}" for quality in QUALITY),
    "summary/information_loss",
    "summary/wire_bytes_per_step",
)
"""Metrics that get a scatter chart against rank; MLflow hides those that no cell has."""

COLUMNS = (
    "params.`model`",
    "params.`data`",
    "params.`compressor`",
    "params.`policy`",
    "params.`alpha`",
    "params.`rank`",
    "metrics.`summary/accuracy`",
    "metrics.`summary/perplexity`",
    "metrics.`summary/loss`",
    "metrics.`summary/information_loss`",
    "metrics.`summary/wire_bytes_per_step`",
)


def shared_view(study_run_id: str) -> str:
    """The value of the tag: the cells of one study, their columns and charts."""
    charts = [
        _card("SCATTER", metric, xaxis=_axis("rank", "PARAM"), yaxis=_axis(metric, "METRIC")) for metric in AGAINST_RANK
    ]
    charts.append(
        _card(
            "PARALLEL",
            "parallel",
            section="settings",
            selectedParams=["alpha", "bottleneck", "compressor", "policy", "rank"],
            selectedMetrics=["summary/wire_bytes_per_step", "summary/information_loss", "summary/loss"],
            showAllRuns=True,
        )
    )
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{study_run_id}'",
        "orderByKey": "metrics.`summary/wire_bytes_per_step`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
        "compareRunSections": [_section("rank", "Against rank"), _section("settings", "Settings and results")],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "runsHiddenMode": "SHOWALL",  # else all but the first ten cells are left out
    }
    return json.dumps(state, separators=(",", ":"))


def comparison_url(server: str, experiment_id: str, study_run_id: str) -> str:
    """The address of the view on a server such as `http://127.0.0.1:5000`."""
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={study_run_id}&compareRunsMode=CHART"


def _card(kind: str, name: str, section: str = "rank", **fields: Any) -> dict[str, Any]:
    common = {"type": kind, "uuid": name, "metricSectionId": section, "deleted": False, "isGenerated": False}
    return {**common, "runsCountToCompare": 100, **fields}


def _axis(key: str, kind: str) -> dict[str, str]:
    return {"key": key, "type": kind, "dataAccessKey": key}


def _section(uuid: str, name: str) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True}
