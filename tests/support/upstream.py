"""What graphile-worker 0.18.0 has, by name: as the page of compatibility must have it."""

from typing import Final

EVENTS: Final = """
pool:create pool:listen:connecting pool:listen:success pool:listen:error
pool:listen:notification pool:listen:release pool:fatalError pool:release pool:gracefulShutdown
pool:gracefulShutdown:workerError pool:gracefulShutdown:error pool:gracefulShutdown:complete
pool:forcefulShutdown pool:forcefulShutdown:error pool:forcefulShutdown:complete
localQueue:init localQueue:setMode localQueue:getJobs:complete localQueue:returnJobs
localQueue:refetchDelay:start localQueue:refetchDelay:abort localQueue:refetchDelay:expired
worker:create worker:release worker:stop worker:getJob:start worker:getJob:empty
worker:getJob:error worker:fatalError job:start job:success job:error job:failed job:complete
cron:starting cron:started cron:backfill cron:prematureTimer cron:overdueTimer cron:schedule
cron:scheduled resetLocked:started resetLocked:success resetLocked:failure
gracefulShutdown forcefulShutdown stop
"""

NAMES: Final = {
    "exports": """
        run runOnce runMigrations runTaskList runTaskListOnce makeWorkerUtils addJobAdhoc
        quickAddJob getTasks getCronItems parseCronItem parseCronItems parseCrontab Logger
        consoleLogFactory WorkerPreset LocalQueueModes isValidTask
    """,
    "runners and pools": """
        runner.stop runner.kill runner.addJob runner.promise runner.events workerPool.id
        workerPool.nudge workerPool.gracefulShutdown workerPool.forcefulShutdown
        workerPool.release workerPool.abortSignal workerPool.abortPromise
    """,
    "a new job": """
        addJob addJobs queueName runAt priority maxAttempts jobKey jobKeyMode flags payload
        jobKeyPreserveRunAt replace preserve_run_at unsafe_dedupe
    """,
    "WorkerUtils": """
        utils.withPgClient utils.logger utils.release utils.migrate completeJobs
        permanentlyFailJobs rescheduleJobs forceUnlockWorkers cleanup remove_job
        DELETE_PERMAFAILED_JOBS GC_TASK_IDENTIFIERS GC_JOB_QUEUES taskIdentifiersToKeep
    """,
    "helpers": """
        helpers.job helpers.logger helpers.addJob helpers.addJobs helpers.withPgClient
        helpers.withPgClient.withRetries helpers.query helpers.getQueueName helpers.abortSignal
        helpers.abortPromise helpers.debug
    """,
    "options": """
        connectionString schema maxPoolSize concurrentJobs pollInterval preparedStatements
        taskDirectory crontabFile fileExtensions logger events minResetLockedInterval
        maxResetLockedInterval gracefulShutdownAbortTimeout useNodeTime getQueueNameBatchDelay
        localQueue.size localQueue.ttl refetchDelay.durationMs refetchDelay.threshold
        refetchDelay.maxAbortThreshold completeJobBatchDelay failJobBatchDelay pgPool taskList
        forbiddenFlags workerId noHandleSignals crontab parsedCronItems preset
    """,
    "flags": """
        --help --version -c --connection -s --schema --schema-only --once --crontab -j --jobs -m
        --max-pool-size --poll-interval --no-prepared-statements -C --config --cleanup
    """,
    "variables": """
        DATABASE_URL PG* GRAPHILE_WORKER_SCHEMA NO_LOG_SUCCESS GRAPHILE_LOGGER_DEBUG
        GRAPHILE_WORKER_DEBUG GRAPHILE_ENABLE_DANGEROUS_LOGS GRAPHILE_WORKER_PAYLOAD_FORMAT
        GRAPHILE_WORKER_TASK_IDENTIFIER GRAPHILE_WORKER_JOB_ID GRAPHILE_WORKER_JOB_KEY
        GRAPHILE_WORKER_JOB_ATTEMPTS GRAPHILE_WORKER_JOB_MAX_ATTEMPTS
        GRAPHILE_WORKER_JOB_PRIORITY GRAPHILE_WORKER_JOB_RUN_AT
    """,
    "hooks": """
        init prebootstrap postbootstrap premigrate postmigrate migrationError loadTaskFromFiles
        startWorker stopWorker bootstrap migrate poolGracefulShutdown poolForcefulShutdown
        poolWorkerPrematureExit replaceWithNewWorker
    """,
    "modes of a local queue": "STARTING POLLING WAITING TTL_EXPIRED RELEASED",
    "signals": "SIGUSR2 SIGINT SIGTERM SIGHUP SIGABRT SIGPIPE",
    "channels": "jobs:insert worker:migrate",
    "errors of the database": "40001 40P01 57P03 EHOSTUNREACH ETIMEDOUT",
    "columns": "locked_by run_at last_error attempts max_attempts updated_at revision",
    "events": EVENTS,
}

TEST_FILES: Final = """
batchJobs cron cron-timing cronMatcher crontab events forbiddenFlags getTasks jobsView
main.runTaskList main.runTaskListOnce migrate nodeTime resetLockedAt runner.helpers.getTaskName
runner.runOnce workerUtils.addJob workerUtils.addJobs workerUtils.cleanup workerUtils.completeJobs
workerUtils.forceUnlockWorkers workerUtils.permanentlyFailJobs workerUtils.rescheduleJobs
"""
