"""Schemas of the custom resources that the manifests use: of KEDA and the Prometheus operator, whose own
schemas no package brings. Strict, and only as wide as what is used here."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(item: Any) -> dict[str, Any]:
    """A list of at least one."""
    return {"type": "array", "items": item, "minItems": 1}


def resource(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A whole resource."""
    metadata = {"type": "object", "required": ["name"], "properties": {"name": NAME}}
    return closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


_KAFKA = closed(
    "bootstrapServers consumerGroup topic lagThreshold",
    bootstrapServers={"type": "string", "pattern": r"^[a-z0-9.-]+:\d+(,[a-z0-9.-]+:\d+)*$"},
    consumerGroup=TEXT,
    topic=TEXT,
    lagThreshold={"type": "string", "pattern": r"^\d+$"},
)
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_RULE = closed(
    "expr",
    record=TEXT,
    alert=TEXT,
    expr=TEXT,
    labels=_LABELS,
    annotations=_LABELS,
    **{"for": {"type": "string", "pattern": r"^\d+[smh]$"}},
)

CRDS = {
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        closed(
            "scaleTargetRef triggers minReplicaCount maxReplicaCount",
            scaleTargetRef=closed("name kind", kind={"enum": ["Deployment", "StatefulSet"]}, name=NAME),
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            pollingInterval=COUNT,
            cooldownPeriod=COUNT,
            advanced=closed(
                "horizontalPodAutoscalerConfig",
                horizontalPodAutoscalerConfig=closed(
                    "behavior",
                    behavior=closed(
                        "scaleDown",
                        scaleDown=closed(
                            "stabilizationWindowSeconds",
                            stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
                        ),
                    ),
                ),
            ),
            triggers=many(
                closed(
                    "type metadata",
                    type={"const": "kafka"},
                    metadata=_KAFKA,
                    authenticationRef=closed("name", name=NAME),
                )
            ),
        ),
    ),
    "TriggerAuthentication": resource(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        closed(
            "secretTargetRef",
            secretTargetRef=many(closed("parameter name key", parameter=TEXT, name=NAME, key=TEXT)),
        ),
    ),
    "PodMonitor": resource(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        closed(
            "selector podMetricsEndpoints",
            jobLabel=TEXT,
            selector=closed(
                "matchExpressions",
                matchExpressions=many(
                    closed(
                        "key operator values",
                        key=TEXT,
                        operator={"enum": ["In"]},
                        values=many({"type": "string"}),
                    )
                ),
            ),
            podMetricsEndpoints=many(
                closed(
                    "port path",
                    port=NAME,
                    path={"const": "/metrics"},
                    interval={"type": "string", "pattern": r"^\d+s$"},
                    relabelings=many(
                        closed("sourceLabels targetLabel", sourceLabels=many(TEXT), targetLabel=TEXT)
                    ),
                )
            ),
        ),
    ),
    "PrometheusRule": resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        closed("groups", groups=many(closed("name rules", name=TEXT, rules=many(_RULE)))),
    ),
}
"""Kind → JSON schema."""
