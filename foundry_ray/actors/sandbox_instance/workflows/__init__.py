"""The order of what is done in a sandbox."""

from foundry_ray.actors.sandbox_instance.workflows.branch import (
    Compare,
    Pushing,
    PushOut,
)
from foundry_ray.actors.sandbox_instance.workflows.common import (
    NEEDS_CREDENTIAL,
    PHASE_OF,
    ask_credential,
    place,
    show,
)
from foundry_ray.actors.sandbox_instance.workflows.end import (
    End,
    EndSandbox,
)
from foundry_ray.actors.sandbox_instance.workflows.provision import (
    Opening,
    OpenSession,
    Provision,
    agent_input,
    opened,
)
from foundry_ray.actors.sandbox_instance.workflows.talk import (
    Answer,
    Answering,
    Cancel,
    Cancelling,
    Deliver,
    Delivery,
)

__all__ = [
    "NEEDS_CREDENTIAL",
    "PHASE_OF",
    "Answer",
    "Answering",
    "Cancel",
    "Cancelling",
    "Compare",
    "Deliver",
    "Delivery",
    "End",
    "EndSandbox",
    "OpenSession",
    "Opening",
    "Provision",
    "PushOut",
    "Pushing",
    "agent_input",
    "ask_credential",
    "opened",
    "place",
    "show",
]
