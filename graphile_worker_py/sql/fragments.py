"""Parts of SQL that several statements share."""

from typing import Final

# In the order of `job.JOB_COLUMNS`. Each column is named: with `job.*`, a prepared statement would
# fail in all open sessions as soon as a column is added to the table.
JOB: Final = """
  job.id, job.job_queue_id, job.task_id, job.payload, job.priority, job.run_at, job.attempts,
  job.max_attempts, job.last_error, job.created_at, job.updated_at, job.key, job.locked_at,
  job.locked_by, job.revision, job.flags, job.is_available
"""

# A job that has used its last attempt may still be running.
STATE: Final = """
  case
    when job.locked_at is not null then 'running'
    when job.attempts >= job.max_attempts then 'failed'
    when job.run_at > pg_catalog.now() then 'scheduled'
    else 'ready'
  end
"""
