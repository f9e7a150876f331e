"""The columns of a job, in the order of `JOB_COLUMNS`.

By name, because somebody may add a column at the end of the table while workers run: the plans that
their sessions keep would then have another result, and fail for good.
"""

from typing import Final

JOB_ROW: Final = """
  jobs.id,
  jobs.job_queue_id,
  jobs.task_id,
  jobs.payload,
  jobs.priority,
  jobs.run_at,
  jobs.attempts,
  jobs.max_attempts,
  jobs.last_error,
  jobs.created_at,
  jobs.updated_at,
  jobs.key,
  jobs.locked_at,
  jobs.locked_by,
  jobs.revision,
  jobs.flags,
  jobs.is_available
"""
