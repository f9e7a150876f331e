"""Jobs as they may be shown: redacted, cut, and without what a user may not see."""

from datetime import datetime
from typing import Any, Final

import orjson

from graphile_worker_py import json_codec
from graphile_worker_py.job import Job
from graphile_worker_py.looking.explaining import Explanation
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.sql.inspect import ListedJob
from graphile_worker_py.sql.job_ends import JobOutcome
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.redact import Redaction
from graphile_worker_py.web.settings import SHOWN_PAYLOAD

HIDDEN_FLAGS: Final = ("traceparent:", "gwpy:")
ERRORS_WITHIN: Final = ("; last error:", "; it was opened by:")
"""What stands before an error in the fact of a reason."""
_WITHOUT_PAYLOAD: Final = b'"[not shown to you]"'
_CUT: Final = b'"[1 MB or more: download it]"'


def payload_of(job: Job, access: Access, redaction: Redaction) -> bytes:
    """A payload as it was stored, byte for byte, but for what is hidden."""
    if not access.payloads:
        return _WITHOUT_PAYLOAD
    text = job.payload_json
    return _CUT if len(text) >= SHOWN_PAYLOAD else redaction.payload(text)


def error_of(job: Job, access: Access, redaction: Redaction) -> str | None:
    """The last error without passwords; only its first word for users who see no payloads."""
    if job.last_error is None:
        return None
    if not access.payloads:
        return "[not shown to you]"
    return redaction.text(masked_text(job.last_error))


def flags_of(job: Job) -> list[str]:
    """The flags that people have given."""
    try:
        flags = job.flags or {}
    except ValueError:
        return ["[too deeply nested]"]
    return sorted(flag for flag in flags if not flag.startswith(HIDDEN_FLAGS))


def job_json(job: ListedJob, access: Access, redaction: Redaction) -> dict[str, Any]:
    """A job for programs."""
    return {
        "id": job.id,
        "state": str(job.state),
        "task": job.task_identifier,
        "queue_name": job.queue_name,
        "job_key": job.key,
        "priority": job.priority,
        "run_at": moment(job.run_at),
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "created_at": moment(job.created_at),
        "updated_at": moment(job.updated_at),
        "locked_at": moment(job.locked_at),
        "locked_by": job.locked_by,
        "revision": job.revision,
        "flags": flags_of(job),
        "last_error": error_of(job, access, redaction),
        "payload": orjson.Fragment(payload_of(job, access, redaction)),
    }


def outcome_json(outcome: JobOutcome, access: Access, redaction: Redaction) -> dict[str, Any]:
    """The outcome of a job for programs."""
    error = outcome.error if access.payloads else None
    result = outcome.result if access.payloads else None
    return {
        "status": str(outcome.status),
        "result": orjson.Fragment(redaction.payload(json_codec.dumps(result))),
        "error": None if error is None else redaction.text(masked_text(error)),
        "attempts": outcome.attempts,
        "started_at": moment(outcome.started_at),
        "finished_at": moment(outcome.finished_at),
        "duration": outcome.duration,
    }


def explanation_json(found: Explanation, access: Access, redaction: Redaction) -> dict[str, Any]:
    """Why a job does not run, without the errors that a user may not see."""
    told = found.as_json()
    for reason in told["reasons"]:
        if not access.payloads:
            for mark in ERRORS_WITHIN:
                reason["fact"] = reason["fact"].partition(mark)[0]
        reason["fact"] = redaction.text(masked_text(reason["fact"]))
    return told


def moment(value: datetime | None) -> str | None:
    """A time as RFC 3339 writes it."""
    return None if value is None else value.isoformat().replace("+00:00", "Z")
