#!/bin/sh
# A shell task: environment variables describe the job.
echo "I am $GRAPHILE_WORKER_TASK_IDENTIFIER, attempt $GRAPHILE_WORKER_JOB_ATTEMPTS" \
  "of $GRAPHILE_WORKER_JOB_MAX_ATTEMPTS"
