"""The columns of the jobs table as statements return them."""

from typing import Final

# In the order of a Job's row. Named one by one: with `job.*` a statement that was prepared would
# fail in all sessions that are open when somebody adds a column of their own.
JOB: Final = """
  job.id, job.job_queue_id, job.task_id, job.payload, job.priority, job.run_at, job.attempts,
  job.max_attempts, job.last_error, job.created_at, job.updated_at, job.key, job.locked_at,
  job.locked_by, job.revision, job.flags, job.is_available
"""
