#!/bin/sh
# A task for the shell: what it needs to know of the job is in its environment.
echo "I am $GRAPHILE_WORKER_TASK_IDENTIFIER, attempt $GRAPHILE_WORKER_JOB_ATTEMPTS" \
  "of $GRAPHILE_WORKER_JOB_MAX_ATTEMPTS"
