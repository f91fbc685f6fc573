"""The files that operators hand to Ray say what Ray understands and what the code has."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parent.parent.parent


def read(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_cluster_yaml_is_what_ray_up_accepts() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    cluster = read("cluster.yaml")

    jsonschema.validate(cluster, schema)

    mounted = [source for source in cluster["file_mounts"].values() if source.startswith("./")]
    assert [source for source in mounted if not (ROOT / source).exists()] == []


def test_serve_yaml_is_what_ray_serve_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(read("deployments/serve.yaml"))

    assert {a.name: a.route_prefix for a in parsed.applications} == {
        "api": "/",
        "streams": "/api/stream",
        "webhooks": "/webhooks",
    }


def test_serve_yaml_names_what_the_code_has() -> None:
    for application in read("deployments/serve.yaml")["applications"]:
        module, _, name = application["import_path"].partition(":")
        assert hasattr(importlib.import_module(module), name)
